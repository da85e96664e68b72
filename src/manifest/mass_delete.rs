//! Holds back a deletion of many objects at once. In: the deletions that are wanted, and when. Out: why they
//! must wait, or nothing. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::object::ObjectKey;

/// How many deletions at once are suspicious.
#[derive(Clone, Copy, Debug)]
pub struct MassDeleteSettings {
    /// More than this share of the source's objects, in percent …
    pub percent: u8,
    /// … and more than this many objects …
    pub objects: usize,
    /// … are deleted only once the same deletions have been wanted for this long. None: at once.
    pub confirm_after: Option<Duration>,
}

impl Default for MassDeleteSettings {
    fn default() -> Self {
        MassDeleteSettings { percent: 50, objects: 5, confirm_after: Some(Duration::from_secs(30)) }
    }
}

/// Holds back a mass deletion until it has lasted: a wrong mount or checkout is noticed and mended sooner.
#[derive(Clone, Debug, Default)]
pub struct MassDeleteGuard {
    settings: MassDeleteSettings,
    /// The deletions held back, and since when.
    pending: Option<(BTreeSet<ObjectKey>, Instant)>,
}

impl MassDeleteGuard {
    /// A guard for one source.
    pub fn new(settings: MassDeleteSettings) -> Self {
        MassDeleteGuard { settings, pending: None }
    }

    /// When to call [`changes`](super::changes) again although nothing changed, if deletions are held back.
    pub fn due(&self) -> Option<Instant> {
        let (_, since) = self.pending.as_ref()?;
        Some(*since + self.settings.confirm_after?)
    }

    /// Nothing can be said of deletions now: those that are held back begin anew.
    pub(super) fn forget(&mut self) {
        self.pending = None;
    }

    /// Why these deletions must wait.
    pub(super) fn refusal(
        &mut self,
        deletions: &BTreeSet<ObjectKey>,
        alive: usize,
        now: Instant,
    ) -> Option<String> {
        let MassDeleteSettings { percent, objects, confirm_after } = self.settings;
        let mass = deletions.len() > objects && deletions.len() * 100 > alive * usize::from(percent);
        let Some(confirm_after) = confirm_after.filter(|_| mass) else {
            self.pending = None;
            return None;
        };
        let since = match &self.pending {
            Some((pending, since)) if pending == deletions => *since,
            _ => now,
        };
        if now.saturating_duration_since(since) >= confirm_after {
            self.pending = None;
            return None;
        }
        self.pending = Some((deletions.clone(), since));
        // The same words each time: a lasting warning is said once.
        Some(format!(
            "{} of {alive} objects are not declared any more; they are deleted if that lasts for {} s",
            deletions.len(),
            confirm_after.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Kind;

    const SECOND: Duration = Duration::from_secs(1);

    fn keys(names: &[&str]) -> BTreeSet<ObjectKey> {
        names.iter().map(|name| ObjectKey::new(Kind::Vm, "default", *name)).collect()
    }

    /// More than half and more than two must last for half a minute.
    fn guard() -> MassDeleteGuard {
        MassDeleteGuard::new(MassDeleteSettings { percent: 50, objects: 2, confirm_after: Some(30 * SECOND) })
    }

    #[test]
    fn a_mass_is_more_than_the_number_and_more_than_the_share() {
        let now = Instant::now();
        let waits = |names: &[&str], alive| guard().refusal(&keys(names), alive, now).is_some();
        assert!(waits(&["a", "b", "c"], 5));
        assert!(!waits(&["a", "b", "c"], 6), "half is not more than half");
        assert!(!waits(&["a", "b"], 2), "two are not more than two");
        let mut at_once =
            MassDeleteGuard::new(MassDeleteSettings { confirm_after: None, ..guard().settings });
        assert_eq!(at_once.refusal(&keys(&["a", "b", "c"]), 3, now), None);
    }

    #[test]
    fn what_lasts_takes_place_once() {
        let (mut guard, start, mass) = (guard(), Instant::now(), keys(&["a", "b", "c"]));
        assert_eq!(guard.due(), None);
        let said = guard.refusal(&mass, 4, start);
        assert!(said.as_ref().is_some_and(|said| said.contains("3 of 4 objects") && said.contains("30 s")));
        let before = start + 30 * SECOND - Duration::from_millis(1);
        assert_eq!(guard.refusal(&mass, 4, before), said, "the same words");
        assert_eq!(guard.due(), Some(start + 30 * SECOND), "waiting is not prolonged by being asked");
        assert_eq!(guard.refusal(&mass, 4, start + 30 * SECOND), None);
        assert_eq!(guard.due(), None);
        assert!(guard.refusal(&mass, 4, start + 31 * SECOND).is_some(), "the next mass is another");
    }

    #[test]
    fn whatever_interrupts_it_begins_it_anew() {
        let (start, mass, other) = (Instant::now(), keys(&["a", "b", "c"]), keys(&["a", "b", "d"]));
        let interruptions: [&dyn Fn(&mut MassDeleteGuard); 3] = [
            &|guard| guard.forget(),
            &|guard| assert_eq!(guard.refusal(&keys(&["a"]), 4, start + 10 * SECOND), None),
            &|guard| assert!(guard.refusal(&other, 4, start + 10 * SECOND).is_some()),
        ];
        for interrupt in interruptions {
            let mut guard = guard();
            assert!(guard.refusal(&mass, 4, start).is_some());
            interrupt(&mut guard);
            assert!(guard.due().is_none_or(|due| due == start + 40 * SECOND));
            assert!(guard.refusal(&mass, 4, start + 30 * SECOND).is_some());
            assert_eq!(guard.due(), Some(start + 60 * SECOND));
        }
    }
}
