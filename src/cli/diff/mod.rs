//! `vmlet diff`.

mod render;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::{Client, JSON};
use super::error::{CliError, Outcome};
use super::output::Form;
use super::validate::read;
use crate::api::types::{Declaration, List};
use crate::diff::{Look, Process, Running, Scope, difference};
use crate::manifest::{
    Broken, Diagnostic, DirectorySource, FileState, Held, MassDeleteSettings, Settings, Snapshot, decode,
};
use crate::object::{API_VERSION, AnyObject, Kind};
use crate::store::Origin;

/// Show what manifests would change against what runs, before it happens
///
/// The daemon's own manifests folder is compared whole, deletions included; of other folders and of single files
/// only the objects that they declare. An image's new reference moves its VMs unless its digest stays the same.
/// Exits with 0 if nothing changes, 1 if something does, 2 on errors.
#[derive(Args, Debug)]
pub(super) struct Diff {
    /// Files, and folders that are searched as the daemon does
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// The form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,

    /// The daemon's setting of this name: which share of all objects is not deleted at once
    #[arg(long, value_name = "PERCENT", env = "VMLET_MASS_DELETE_PERCENT", default_value = "50", hide_env = true,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    mass_delete_percent: u8,
}

/// Everything that is said beside the difference.
#[derive(Debug, Default)]
struct Findings {
    diagnostics: Vec<Diagnostic>,
    /// Folders that cannot be read, or not completely.
    troubles: Vec<String>,
    notes: Vec<String>,
}

impl Findings {
    fn are_errors(&self) -> bool {
        !self.diagnostics.is_empty() || !self.troubles.is_empty()
    }
}

impl Diff {
    /// Runs the verb.
    pub(super) async fn run(self, client: &Client) -> Outcome {
        // 1 says that something would change, so failures are 2 here.
        let failure = |error: CliError| CliError { code: if error.code == 0 { 0 } else { 2 }, ..error };
        let running = running(client).await.map_err(failure)?;
        let mut looks = Looks::new(&running);
        for path in &self.paths {
            looks.add(path).map_err(failure)?;
        }
        let (looks, findings) = looks.finish();
        let settings =
            MassDeleteSettings { percent: self.mass_delete_percent, ..MassDeleteSettings::default() };
        let mut difference = difference(&running, &looks, settings);
        difference.notes.splice(0..0, findings.notes.iter().cloned());
        let errors = findings.are_errors() || !difference.refused.is_empty();
        let mut out = io::stdout();
        match self.output {
            Form::Json => writeln!(out, "{:#}", render::json(&difference, &findings))
                .map_err(CliError::from)
                .map_err(failure)?,
            Form::Text => {
                render::complain(&difference, &findings);
                render::text(&mut out, &difference).map_err(CliError::from).map_err(failure)?;
            }
        }
        match (errors, difference.is_empty()) {
            (true, _) => Err(CliError::silent(2)),
            (false, true) => Ok(()),
            (false, false) => Err(CliError::silent(1)),
        }
    }
}

/// Everything that the daemon holds.
async fn running(client: &Client) -> Result<Vec<Running>, CliError> {
    let list: List = client.get(&format!("/apis/{API_VERSION}/declarations"), JSON).await?;
    list.items.into_iter().map(|item| running_of(parse(item)?)).collect()
}

fn running_of(declaration: Declaration) -> Result<Running, CliError> {
    let Declaration { object, source, path, line, terminating, started, ended, exit_code } = declaration;
    let kind: Kind = parse(object["kind"].clone())?;
    let object = match kind {
        Kind::Vm => AnyObject::Vm(parse(object)?),
        Kind::Image => AnyObject::Image(parse(object)?),
    };
    let process = match started {
        None => Process::Idle,
        Some(spec) if ended => Process::Ended { started: parse(spec)?, code: exit_code },
        Some(spec) => Process::Up { started: parse(spec)? },
    };
    Ok(Running { held: Held { object, path, line, terminating, problem: None }, source, process })
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, CliError> {
    serde_json::from_value(value).map_err(|error| {
        CliError::new(format!("the daemon's answer is not understood: {error}"))
            .hint("compare `vmlet version` of daemon and command line")
    })
}

/// Gathers what the paths declare.
struct Looks {
    /// The folders that the daemon reads, by their sources, without links.
    roots: BTreeMap<String, PathBuf>,
    looks: Vec<Look>,
    elsewhere: Snapshot,
    findings: Findings,
}

impl Looks {
    fn new(running: &[Running]) -> Self {
        let roots = running.iter().filter_map(|running| {
            let root = Origin::folder_of(&running.source)?;
            Some((running.source.clone(), real(root)))
        });
        let elsewhere = Snapshot { complete: true, ..Snapshot::default() };
        Looks { roots: roots.collect(), looks: Vec::new(), elsewhere, findings: Findings::default() }
    }

    fn add(&mut self, path: &Path) -> Result<(), CliError> {
        let place = fs::canonicalize(path)
            .map_err(|error| CliError::new(format!("{} cannot be read: {error}", path.display())))?;
        let roots = self.roots.clone();
        for (source, root) in &roots {
            if root.starts_with(&place) {
                if *root != place {
                    let (root, path) = (root.display(), path.display());
                    self.note(format!("of {path} only {root} is compared, which is what the daemon reads"));
                }
                self.look(scan(root), root, Scope::Source(source.clone()));
                return Ok(());
            }
            if let Ok(below) = place.strip_prefix(root) {
                let snapshot = scan(root);
                let files = snapshot.files.keys().filter(|file| file.starts_with(below)).cloned().collect();
                self.note(format!(
                    "only what {} declares is compared; deletions are shown for the whole of {}",
                    path.display(),
                    root.display()
                ));
                self.look(snapshot, root, Scope::Files { source: source.clone(), files });
                return Ok(());
            }
        }
        if !roots.is_empty() {
            let roots: Vec<String> = roots.values().map(|root| root.display().to_string()).collect();
            self.note(format!(
                "{} is not what the daemon reads ({}): only the objects that it declares are compared, no deletions",
                path.display(),
                roots.join(", ")
            ));
        }
        self.elsewhere(path)
    }

    fn elsewhere(&mut self, path: &Path) -> Result<(), CliError> {
        if path.is_dir() {
            let snapshot = scan(path);
            self.complain(&snapshot, path, |_| true);
            let files = snapshot.files.into_iter().map(|(file, state)| (path.join(file), state));
            self.elsewhere.files.extend(files);
            return Ok(());
        }
        let bytes = read(path)
            .map_err(|error| CliError::new(format!("{} cannot be read: {error}", path.display())))?;
        let decoded = decode(path, &bytes);
        let state = if decoded.diagnostics.is_empty() {
            FileState::Good(Arc::new(decoded.objects))
        } else {
            self.findings.diagnostics.extend(decoded.diagnostics.iter().cloned());
            FileState::Broken(Arc::new(Broken::new(decoded.diagnostics, &bytes)))
        };
        self.elsewhere.files.insert(path.to_owned(), state);
        Ok(())
    }

    fn look(&mut self, snapshot: Snapshot, root: &Path, scope: Scope) {
        match &scope {
            Scope::Files { files, .. } => self.complain(&snapshot, root, |file| files.contains(file)),
            Scope::Source(_) | Scope::Elsewhere => self.complain(&snapshot, root, |_| true),
        }
        self.looks.push(Look { snapshot, scope });
    }

    /// Takes in what is wrong with the chosen files, and with the folder.
    fn complain(&mut self, snapshot: &Snapshot, root: &Path, chosen: impl Fn(&Path) -> bool) {
        self.findings.troubles.extend(snapshot.trouble.iter().cloned());
        for (file, state) in snapshot.files.iter().filter(|(file, _)| chosen(file)) {
            let path = root.join(file);
            match state {
                FileState::Good(_) => {}
                FileState::Broken(broken) => {
                    let found = broken.diagnostics.iter().cloned();
                    self.findings
                        .diagnostics
                        .extend(found.map(|found| Diagnostic { path: path.clone(), ..found }));
                }
                FileState::Unsettled => {
                    let trouble = format!("{} is being written or cannot be read", path.display());
                    self.findings.troubles.push(trouble);
                }
            }
        }
    }

    fn note(&mut self, note: String) {
        self.findings.notes.push(note);
    }

    fn finish(mut self) -> (Vec<Look>, Findings) {
        if !self.elsewhere.files.is_empty() {
            self.looks.push(Look { snapshot: self.elsewhere, scope: Scope::Elsewhere });
        }
        (self.looks, self.findings)
    }
}

fn scan(root: &Path) -> Snapshot {
    DirectorySource::new(root.to_owned(), Settings::default()).scan_once()
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
