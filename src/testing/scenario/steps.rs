//! What the steps of a scenario do.

use std::path::Path;
use std::sync::Arc;

use super::file::Step;
use super::folder::{folder, one_file};
use super::load::Loader;
use crate::manifest::{Snapshot, similar};
use crate::testing::{Action, Trouble};

/// What a step can do.
const DEEDS: &str = "apply, replace, remove, crash, reboot, killVmm, exit, images, failStore, trouble";

impl Loader<'_> {
    /// The files that a step brings.
    pub(super) fn folder_of(&mut self, index: usize, step: &Step) -> Option<Arc<Snapshot>> {
        let (field, path) = match (&step.apply, &step.replace) {
            (Some(path), None) => ("apply", path),
            (None, Some(path)) => ("replace", path),
            _ => return None,
        };
        let place = self.beside.join(path);
        let found = if field == "apply" && place.is_file() { one_file(&place) } else { folder(&place) };
        match found {
            Ok(snapshot) => {
                self.learn(&snapshot);
                Some(Arc::new(snapshot))
            }
            Err(wrong) => {
                let message = format!("{path} cannot be used: see its own errors");
                self.page.refuse(&format!("steps[{index}].{field}"), false, &message, None);
                self.elsewhere.extend(wrong);
                None
            }
        }
    }

    /// What a step does: one thing, which may be several actions.
    pub(super) fn actions(&mut self, index: usize, step: Step, folder: Option<Arc<Snapshot>>) -> Vec<Action> {
        let at = format!("steps[{index}]");
        let mut deeds = self.edits(&at, &step, folder);
        deeds.extend(self.scripted(&at, &step));
        deeds.extend(step.crash.map(|down| vec![Action::Crash { down: down.get() }]));
        deeds.extend(step.reboot.map(|down| vec![Action::Reboot { down: down.get() }]));
        deeds.extend(step.trouble.map(|mood| vec![Action::Trouble(Box::new(Trouble::from(mood)))]));
        match deeds.len() {
            0 => {
                let hint = format!("add one of {DEEDS}");
                self.page.refuse(&at, true, "nothing happens in this step", Some(&hint));
            }
            1 => {}
            _ => {
                let hint = "write a step for each; they may have one time";
                self.page.refuse(&at, true, "more than one thing happens in this step", Some(hint));
            }
        }
        deeds.into_iter().flatten().collect()
    }

    /// What a step does to the manifests folder.
    fn edits(&mut self, at: &str, step: &Step, folder: Option<Arc<Snapshot>>) -> Vec<Vec<Action>> {
        let mut deeds = Vec::new();
        let paths = folder.iter().flat_map(|folder| folder.files.keys().cloned());
        if step.apply.is_some() {
            self.present.extend(paths);
            deeds.push(folder.map(Action::Apply).into_iter().collect());
        } else if step.replace.is_some() {
            self.present = paths.collect();
            deeds.push(folder.map(Action::Replace).into_iter().collect());
        }
        if step.apply.is_some() && step.replace.is_some() {
            deeds.push(Vec::new());
        }
        if let Some(path) = &step.remove {
            if !self.present.remove(Path::new(path)) {
                let known = self.present.iter().filter_map(|path| path.to_str());
                let hint = similar(path, known).map(|path| format!("did you mean `{path}`?"));
                let message = format!("the manifests folder has no file {path:?} then");
                self.page.refuse(&format!("{at}.remove"), false, &message, hint.as_deref());
            }
            deeds.push(vec![Action::Remove { path: path.clone() }]);
        }
        deeds
    }

    /// What a step does to VMs, images and the store.
    fn scripted(&mut self, at: &str, step: &Step) -> Vec<Vec<Action>> {
        let mut deeds = Vec::new();
        if let Some(name) = &step.kill_vmm {
            let key = self.vm(&format!("{at}.killVmm"), false, name);
            deeds.push(key.map(Action::KillVmm).into_iter().collect());
        }
        if let Some(exit) = &step.exit {
            let key = self.vm(&format!("{at}.exit.vm"), false, &exit.vm);
            deeds.push(key.map(|key| Action::EndWorkload(key, exit.code)).into_iter().collect());
        }
        if let Some(images) = &step.images {
            let scripts = self.images(images, &format!("{at}.images"));
            let all = scripts.into_iter().map(|(reference, script)| Action::ScriptImage(reference, script));
            deeds.push(all.collect());
        }
        if let Some(fails) = step.fail_store {
            if !fails {
                self.page.refuse(&format!("{at}.failStore"), false, "failStore can only be true", None);
            }
            deeds.push(vec![Action::FailStore]);
        }
        deeds
    }
}
