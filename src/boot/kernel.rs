//! Which kernel guests run.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use super::{BootError, Settings};

const BOOT: &str = "/boot";
const MODULES: &str = "/lib/modules";
const PREFIX: &str = "vmlinuz-";

/// An installed kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its release: `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The compressed image.
    pub image: PathBuf,
    /// The folder with its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The one that the settings name, or the newest installed.
    pub fn find(settings: &Settings) -> Result<Kernel, BootError> {
        match &settings.kernel {
            None => newest(Path::new(BOOT), settings.modules.as_deref(), Path::new(MODULES)),
            Some(image) => {
                let release = release_of(image).map(str::to_owned);
                let modules = match (&settings.modules, &release) {
                    (Some(modules), _) => modules.clone(),
                    (None, Some(release)) => Path::new(MODULES).join(release),
                    (None, None) => return Err(BootError::UnknownRelease(image.clone())),
                };
                let release = release.unwrap_or_else(|| image.display().to_string());
                Ok(Kernel { release, image: image.clone(), modules })
            }
        }
    }
}

/// The highest release in `boot` that has a folder in `all_modules`, or in `modules` if that is given.
pub(super) fn newest(boot: &Path, modules: Option<&Path>, all_modules: &Path) -> Result<Kernel, BootError> {
    let entries = fs::read_dir(boot).map_err(BootError::io(boot))?;
    entries
        .flatten()
        .filter_map(|entry| {
            let release = release_of(&entry.path())?.to_owned();
            let modules = modules.map_or_else(|| all_modules.join(&release), Path::to_owned);
            modules.is_dir().then(|| Kernel { release, image: entry.path(), modules })
        })
        .max_by(|a, b| compare_releases(&a.release, &b.release))
        .ok_or_else(|| BootError::NoKernel { boot: boot.to_owned(), modules: all_modules.to_owned() })
}

fn release_of(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix(PREFIX).filter(|release| !release.is_empty())
}

/// Numbers by value, words by letters; a number is newer than a word (6.12.0-1 follows 6.12.0-rc7),
/// and longer is newer.
pub(super) fn compare_releases(a: &str, b: &str) -> Ordering {
    parts(a).cmp(parts(b))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Word(&'a str),
    /// Digits without leading zeros, of any length: longer means larger.
    Number(usize, &'a str),
}

fn parts(release: &str) -> impl Iterator<Item = Part<'_>> {
    release.split(|c: char| !c.is_ascii_alphanumeric()).flat_map(|segment| {
        let mut rest = segment;
        std::iter::from_fn(move || {
            let digits = rest.starts_with(|c: char| c.is_ascii_digit());
            let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (part, tail) = rest.split_at(end);
            rest = tail;
            let number = part.trim_start_matches('0');
            match (part, digits) {
                ("", _) => None,
                (_, true) => Some(Part::Number(number.len(), number)),
                (word, false) => Some(Part::Word(word)),
            }
        })
    })
}
