//! Reads a scenario and everything that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Scenario;
use super::file::{Expectation, File, ImageTrouble, Step, VmTrouble};
use super::folder::{folder, read};
use crate::manifest::{Diagnostic, FileState, Page, Snapshot, similar};
use crate::object::{AnyObject, DEFAULT_NAMESPACE, Kind, ObjectKey, Period};
use crate::testing::images::{canonical, name as name_of};
use crate::testing::{ImageScript, VmScript, WorkloadExit};

impl Scenario {
    /// Reads a folder of manifests and a scenario for it; without one nothing goes wrong for ten minutes.
    ///
    /// # Errors
    /// Everything that is wrong with these files and those that they name.
    pub fn load(manifests: &Path, scenario: Option<&Path>) -> Result<Scenario, Vec<Diagnostic>> {
        let folder = folder(manifests)?;
        if folder.files.is_empty() {
            return Err(vec![Diagnostic::of_file(manifests, "the folder holds no manifests")]);
        }
        let Some(path) = scenario else {
            return Ok(Scenario::of(Path::new(""), &File::default(), folder));
        };
        let bytes = read(path)?;
        let (file, page) = Page::read::<File>(path, &bytes, "scenario")?;
        let mut loader = Loader {
            beside: path.parent().unwrap_or(Path::new("")),
            page,
            end: file.duration.get(),
            present: folder.files.keys().cloned().collect(),
            declared: BTreeSet::new(),
            sources: BTreeSet::new(),
            elsewhere: Vec::new(),
        };
        loader.learn(&folder);
        let mut scenario = Scenario::of(path, &file, folder);
        loader.load(file, &mut scenario);
        let mut wrong = loader.page.diagnostics();
        wrong.extend(loader.elsewhere);
        if wrong.is_empty() { Ok(scenario) } else { Err(wrong) }
    }

    fn of(path: &Path, file: &File, manifests: Snapshot) -> Scenario {
        Scenario {
            path: path.to_owned(),
            manifests: Arc::new(manifests),
            duration: file.duration.get(),
            trouble: file.trouble.into(),
            room: file.capacity,
            images: Vec::new(),
            vms: Vec::new(),
            steps: Vec::new(),
            expectations: Vec::new(),
        }
    }
}

/// Checks a scenario against the manifests.
pub(super) struct Loader<'a> {
    /// The scenario's folder.
    pub(super) beside: &'a Path,
    pub(super) page: Page<'a>,
    /// When the simulation ends.
    end: Duration,
    /// The files of the manifests folder, after the steps so far.
    pub(super) present: BTreeSet<PathBuf>,
    /// All objects that are declared at some time.
    declared: BTreeSet<ObjectKey>,
    /// All image sources that are named at some time.
    sources: BTreeSet<String>,
    /// What is wrong with other files.
    pub(super) elsewhere: Vec<Diagnostic>,
}

impl Loader<'_> {
    fn load(&mut self, file: File, scenario: &mut Scenario) {
        let mut steps: Vec<(usize, Step)> = file.steps.into_iter().enumerate().collect();
        steps.sort_by_key(|(_, step)| step.at);
        // What the steps declare is known before anything is looked up.
        let folders: Vec<_> = steps.iter().map(|(index, step)| self.folder_of(*index, step)).collect();
        scenario.images = self.images(&file.images, "images");
        for (name, trouble) in &file.vms {
            if let Some(key) = self.vm(&format!("vms.{name}"), true, name) {
                scenario.vms.push((key, script(*trouble)));
            }
        }
        for ((index, step), folder) in steps.into_iter().zip(folders) {
            let at = step.at.get();
            self.check_time(&format!("steps[{index}].at"), step.at);
            scenario.steps.extend(self.actions(index, step, folder).into_iter().map(|action| (at, action)));
        }
        for (index, expected) in file.expect.into_iter().enumerate() {
            let line = self.page.line(&format!("expect[{index}].object"));
            self.check_expectation(index, &expected);
            scenario.expectations.push((line, expected));
        }
    }

    pub(super) fn learn(&mut self, snapshot: &Snapshot) {
        for state in snapshot.files.values() {
            let FileState::Good(objects) = state else { continue };
            for located in objects.iter() {
                self.declared.insert(located.object.key());
                let source = match &located.object {
                    AnyObject::Vm(vm) => vm.spec.image.direct(),
                    AnyObject::Image(image) => image.spec.source.chosen(&image.metadata.namespace),
                };
                self.sources.extend(source.as_ref().map(name_of));
            }
        }
    }

    pub(super) fn images(
        &mut self,
        images: &BTreeMap<String, ImageTrouble>,
        at: &str,
    ) -> Vec<(String, ImageScript)> {
        let mut scripts = Vec::new();
        for (name, trouble) in images {
            if !self.sources.contains(&canonical(name)) {
                let known = self.sources.iter().map(String::as_str);
                let hint = similar(name, known).map(|known| format!("did you mean `{known}`?"));
                let message = format!("no manifest names the image {name:?}");
                self.page.refuse(&format!("{at}.{name}"), true, &message, hint.as_deref());
            }
            let mut script = ImageScript::of(name);
            script.pull = trouble.pull.get();
            // More than there can be pulls in a week.
            script.failures = if trouble.broken { u32::MAX } else { trouble.failures };
            script.digest = script.digest.filter(|_| !trouble.missing);
            scripts.push((name.clone(), script));
        }
        scripts
    }

    /// A VM by name, or NAMESPACE/NAME.
    pub(super) fn vm(&mut self, field: &str, name_of_field: bool, text: &str) -> Option<ObjectKey> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
        let key = ObjectKey::new(Kind::Vm, namespace, name);
        self.check_declared(field, name_of_field, &key).then_some(key)
    }

    fn check_declared(&mut self, field: &str, name: bool, key: &ObjectKey) -> bool {
        let declared = self.declared.contains(key);
        if !declared {
            let known: Vec<String> = self.declared.iter().map(ToString::to_string).collect();
            let hint = similar(&key.to_string(), known.iter().map(String::as_str))
                .map(|known| format!("did you mean `{known}`?"));
            self.page.refuse(field, name, &format!("no manifest declares {key}"), hint.as_deref());
        }
        declared
    }

    fn check_time(&mut self, field: &str, at: Period) {
        if at.get() > self.end {
            let message = format!("{at} is after the end of the simulation");
            self.page.refuse(field, false, &message, Some("make `duration` longer"));
        }
    }

    fn check_expectation(&mut self, index: usize, expected: &Expectation) {
        let at = format!("expect[{index}]");
        let key = &expected.object.0;
        self.check_declared(&format!("{at}.object"), false, key);
        if let Some(time) = expected.at {
            self.check_time(&format!("{at}.at"), time);
        }
        let state = expected.ready.is_some()
            || expected.phase.is_some()
            || expected.reason.is_some()
            || expected.restarts_at_most.is_some();
        if !state && expected.gone.is_none() {
            let hint = "add one of ready, phase, reason, restartsAtMost, gone";
            self.page.refuse(&at, true, &format!("nothing is expected of {key}"), Some(hint));
        }
        if state && expected.gone == Some(true) {
            self.page.refuse(&format!("{at}.gone"), true, "what is gone has no state", None);
        }
        if key.kind == Kind::Image && expected.restarts_at_most.is_some() {
            self.page.refuse(&format!("{at}.restartsAtMost"), true, "images are not started", None);
        }
    }
}

fn script(trouble: VmTrouble) -> VmScript {
    let exit =
        trouble.exit.map(|exit| WorkloadExit { after: exit.after.get(), code: exit.code, times: exit.times });
    let VmTrouble { boot, hangs, panics, ignores_shutdown: deaf, .. } = trouble;
    VmScript { boot: boot.get(), hangs, panics, exit, deaf, ..VmScript::default() }
}
