//! What objects say of their declarations: problems, rivals, folders that are read no more.

use std::collections::{BTreeMap, BTreeSet};

use super::{Keeper, Refused, together};
use crate::manifest::change::{About, SOURCE_GONE};
use crate::manifest::recorder::MENDED;
use crate::object::ObjectKey;
use crate::store::{Problem, Record, Severity, StoreError};

impl Keeper {
    /// Notes what is wrong. A refused object that exists keeps its last good spec, and says so; of another
    /// only an event can tell.
    pub(super) async fn note(
        &mut self,
        mut problems: Vec<(ObjectKey, Option<Problem>)>,
        refused: Vec<Refused>,
    ) -> Result<(), StoreError> {
        let keys: BTreeSet<ObjectKey> =
            refused.iter().map(|refused| refused.declaration.object.key()).collect();
        problems.retain(|(key, _)| !keys.contains(key));
        for Refused { declaration, error } in refused {
            let key = declaration.object.key();
            let (origin, reason) = (declaration.origin, error.reason());
            if self.owns(&key) {
                let message = format!("{origin}: {error}; the last spec stays");
                problems.push((key, Some(Problem { reason: reason.to_owned(), message })));
            } else {
                let message = format!("{origin}: {error}; it is not created");
                self.recorder.warn(About::Object(key), reason, &message);
            }
        }
        // What is another source's says only that it is declared here too.
        problems.retain(|(key, _)| self.owns(key));
        self.set_problems(problems).await
    }

    async fn set_problems(&self, problems: Vec<(ObjectKey, Option<Problem>)>) -> Result<(), StoreError> {
        let set = |(key, problem): (ObjectKey, Option<Problem>)| {
            let store = self.store.clone();
            async move {
                let old = store.record(&key).and_then(|record| record.own_problem().cloned());
                let news = store.set_problem(&key, problem.clone()).await?;
                Ok(news.then_some((key, old, problem)))
            }
        };
        for (key, old, problem) in together(problems.into_iter().map(set)).await?.into_iter().flatten() {
            match problem {
                Some(news) if news.is_redeclared() => {
                    self.recorder.event((&key).into(), &news.reason, &news.message);
                }
                Some(Problem { reason, message }) => {
                    self.recorder.record((&key).into(), Severity::Warning, &reason, &message);
                }
                None if old.is_some_and(|old| old.is_redeclared()) => {}
                None => self.recorder.event((&key).into(), MENDED, "its manifest is good again"),
            }
        }
        Ok(())
    }

    /// Has the objects of other sources say that this one declares them too, for as long as it does.
    pub(super) async fn contest(
        &mut self,
        before: BTreeMap<ObjectKey, Problem>,
        complete: bool,
    ) -> Result<(), StoreError> {
        let set = |(key, problem): (ObjectKey, Option<Problem>)| {
            let (store, source) = (self.store.clone(), self.source.clone());
            async move {
                let news = store.set_rival(&key, &source, problem).await?;
                Ok(news.then_some(key))
            }
        };
        let contested = self.contested.clone().into_iter();
        together(contested.map(|(key, problem)| set((key, Some(problem))))).await?;
        let (kept, over): (Vec<_>, Vec<_>) = before
            .into_iter()
            .filter(|(key, _)| !self.contested.contains_key(key))
            // What could not be read now may declare it as before.
            .partition(|_| !complete);
        let over = together(over.into_iter().map(|(key, _)| set((key, None)))).await?;
        for key in over.into_iter().flatten() {
            self.recorder.event((&key).into(), MENDED, "no other source declares it any more");
        }
        self.contested.extend(kept);
        Ok(())
    }

    /// Of what other folders declared that this daemon does not read: what this one declares has become its
    /// own; the rest stays, and says that nobody looks after it.
    pub(super) async fn inherit(&self, others: Vec<Record>) -> Result<(), StoreError> {
        let mut problems = Vec::new();
        for former in others.iter().filter(|record| !self.store.attends(&record.origin().source)) {
            let (key, place) = (former.key(), former.origin());
            let Some(record) = self.store.record(&key) else { continue };
            if record.origin().source == self.source {
                let message =
                    format!("declared at {} instead of {place}, which is not read any more", record.origin());
                self.recorder.event((&key).into(), "Declared", &message);
            } else if record.origin() == place && record.metadata().deletion_timestamp.is_none() {
                let message = format!(
                    "declared at {place}, which this daemon does not read: declare it in the manifests folder, or `vmlet delete {key}`"
                );
                problems.push((key, Some(Problem { reason: SOURCE_GONE.to_owned(), message })));
            }
        }
        self.set_problems(problems).await
    }

    pub(super) async fn undeclare(&self, keys: Vec<ObjectKey>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let undeclare = |key: ObjectKey| {
            let (store, source) = (self.store.clone(), self.source.clone());
            async move { Ok(store.undeclare(&key, &source, now).await?.then_some(key)) }
        };
        for key in together(keys.into_iter().map(undeclare)).await?.into_iter().flatten() {
            self.recorder.event((&key).into(), "Undeclared", "its manifest is gone; it is deleted");
        }
        Ok(())
    }

    pub(super) fn owns(&self, key: &ObjectKey) -> bool {
        self.store.record(key).is_some_and(|record| record.origin().source == self.source)
    }
}
