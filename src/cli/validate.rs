//! `vmlet validate`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::error::{CliError, Outcome};
use super::output::Form;
use crate::manifest::{Diagnostic, DirectorySource, FileState, Located, MAX_FILE_SIZE, Settings, decode};
use crate::object::{AnyObject, DependencyError, Kind, ObjectKey, check_dependencies};

/// Check manifests without a daemon
///
/// Every error is shown with its place. Exits with 1 if there is one.
#[derive(Args, Debug)]
pub(super) struct Validate {
    /// Files, and folders that are searched as the daemon does
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,

    /// The form of the findings
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: Form,
}

/// What was found so far.
#[derive(Default)]
struct Report {
    files: usize,
    diagnostics: Vec<Diagnostic>,
    /// Where each object is declared first.
    objects: BTreeMap<ObjectKey, (PathBuf, u32)>,
    /// What each VM depends on.
    dependencies: BTreeMap<ObjectKey, Vec<String>>,
}

impl Validate {
    /// Runs the verb.
    pub(super) fn run(self) -> Outcome {
        let mut report = Report::default();
        for path in &self.paths {
            if path.is_dir() { report.folder(path) } else { report.file(path) }
        }
        report.check_dependencies();
        let valid = report.diagnostics.is_empty();
        let mut out = io::stdout();
        let counts = (plural(report.objects.len(), "object"), plural(report.files, "file"));
        match self.output {
            Form::Json => {
                let json = json!({
                    "valid": valid,
                    "objects": report.objects.len(),
                    "files": report.files,
                    "diagnostics": report.diagnostics,
                });
                writeln!(out, "{json:#}")?;
            }
            Form::Text if valid => {
                let are = if report.objects.len() == 1 { "is" } else { "are" };
                writeln!(out, "{} in {} {are} valid", counts.0, counts.1)?;
            }
            Form::Text => {
                for diagnostic in &report.diagnostics {
                    eprintln!("{diagnostic}\n");
                }
                let errors = plural(report.diagnostics.len(), "error");
                return Err(CliError::new(format!("{errors} in {}", counts.1)));
            }
        }
        if valid { Ok(()) } else { Err(CliError::silent(1)) }
    }
}

impl Report {
    fn file(&mut self, path: &Path) {
        self.files += 1;
        match read(path) {
            Ok(bytes) => {
                let decoded = decode(path, &bytes);
                self.diagnostics.extend(decoded.diagnostics);
                self.declare(path, &decoded.objects);
            }
            Err(error) => self.trouble(path, format!("the file cannot be read: {error}")),
        }
    }

    fn folder(&mut self, root: &Path) {
        let snapshot = DirectorySource::new(root.to_owned(), Settings::default()).scan_once();
        for trouble in snapshot.trouble {
            self.trouble(root, trouble);
        }
        for (path, state) in snapshot.files {
            let path = root.join(path);
            self.files += 1;
            match state {
                FileState::Good(objects) => self.declare(&path, &objects),
                FileState::Broken(found) => {
                    let whole = found
                        .diagnostics
                        .iter()
                        .cloned()
                        .map(|found| Diagnostic { path: path.clone(), ..found });
                    self.diagnostics.extend(whole);
                }
                FileState::Unsettled => {
                    self.trouble(&path, "the file is being written or cannot be read".to_owned());
                }
            }
        }
    }

    fn declare(&mut self, path: &Path, objects: &[Located]) {
        for located in objects {
            let key = located.object.key();
            match self.objects.get(&key) {
                None => {
                    if let AnyObject::Vm(vm) = &located.object {
                        self.dependencies.insert(key.clone(), vm.spec.depends_on.clone());
                    }
                    self.objects.insert(key, (path.to_owned(), located.line));
                }
                // Naming a file twice is no conflict.
                Some((earlier, _)) if earlier == path => {}
                Some((earlier, line)) => {
                    let message = format!("{key} is declared already at {}:{line}", earlier.display());
                    self.found(path, located.line, message);
                }
            }
        }
    }

    /// Each circle is reported once, at the first of its VMs.
    fn check_dependencies(&mut self) {
        let (mut found, mut reported) = (Vec::new(), BTreeSet::new());
        for key in self.dependencies.keys() {
            let named = |name: &str| ObjectKey::new(Kind::Vm, &key.namespace, name);
            let of = |name: &str| self.dependencies.get(&named(name)).cloned().unwrap_or_default();
            let Err(error) = check_dependencies(&key.name, of) else { continue };
            let circle: Vec<ObjectKey> = match &error {
                DependencyError::Cycle(names) => names.iter().map(|name| named(name)).collect(),
                DependencyError::TooMany => vec![key.clone()],
            };
            if circle.iter().all(|key| !reported.contains(key)) {
                found.push((key.clone(), error.to_string()));
            }
            reported.extend(circle);
        }
        for (key, message) in found {
            let (path, line) = self.objects[&key].clone();
            self.found(&path, line, format!("{key}: {message}"));
        }
    }

    fn trouble(&mut self, path: &Path, message: String) {
        self.found(path, 1, message);
    }

    fn found(&mut self, path: &Path, line: u32, message: String) {
        self.diagnostics.push(Diagnostic {
            path: path.to_owned(),
            line,
            column: 1,
            width: 1,
            field: None,
            message,
            hint: None,
            snippet: None,
            snippet_column: 1,
        });
    }
}

/// A file's bytes, one more than allowed at most: the decoder then says that it is too long.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
