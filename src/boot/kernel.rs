//! Which kernel guests run.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::files::{Files, Kind};
use super::{BootError, unpack};

const BOOT: &str = "/boot";
const MODULES: &str = "/lib/modules";
const PREFIX: &str = "vmlinuz-";

/// A kernel that is installed somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Its release: `6.1.0-56-cloud-amd64`.
    pub(super) release: String,
    /// The image.
    pub(super) image: PathBuf,
    /// The folder with its modules; none if all is built in.
    pub(super) modules: Option<PathBuf>,
}

impl Kernel {
    /// The one that is named, or the newest installed. Modules that are not named are in `/lib/modules`, under the
    /// release that the kernel says it is, or that its name says.
    pub(super) fn find(
        files: &Files,
        image: Option<&Path>,
        modules: Option<&Path>,
    ) -> Result<Kernel, BootError> {
        let installed =
            |release: &str| Some(Path::new(MODULES).join(release)).filter(|dir| files.is_folder(dir));
        let Some(image) = image else {
            return newest(files, Path::new(BOOT), modules, Path::new(MODULES));
        };
        let said = said_release(files, image)?;
        let named = release_of(image).map(str::to_owned);
        let mut releases = [said, named].into_iter().flatten();
        let (release, modules) = match modules {
            Some(modules) => (releases.next(), Some(modules.to_owned())),
            None => match releases.clone().find_map(|release| Some((installed(&release)?, release))) {
                Some((modules, release)) => (Some(release), Some(modules)),
                None => (releases.next(), None),
            },
        };
        let release = release.unwrap_or_else(|| image.display().to_string());
        Ok(Kernel { release, image: image.to_owned(), modules })
    }
}

/// The highest release in `boot` that has a folder in `all_modules`, or in `modules` if that is given.
pub(super) fn newest(
    files: &Files,
    boot: &Path,
    modules: Option<&Path>,
    all_modules: &Path,
) -> Result<Kernel, BootError> {
    let none = || BootError::NoKernel { boot: boot.to_owned(), modules: all_modules.to_owned() };
    let entries = if files.is_folder(boot) { files.list(boot)? } else { Vec::new() };
    let found = entries.iter().filter(|entry| entry.kind != Kind::Folder).filter_map(|entry| {
        let named = release_of(&entry.path)?.to_owned();
        let kernel = |release: String, modules: PathBuf| {
            files.is_folder(&modules).then(|| Kernel {
                release,
                image: entry.path.clone(),
                modules: Some(modules),
            })
        };
        if let Some(modules) = modules {
            return kernel(named, modules.to_owned());
        }
        // Some distributions name the file by the kernel's flavour, vmlinuz-virt, not by its release.
        let beside = all_modules.join(&named);
        kernel(named, beside).or_else(|| {
            let said = said_release(files, &entry.path).ok().flatten()?;
            let modules = all_modules.join(&said);
            kernel(said, modules)
        })
    });
    found.max_by(|a, b| compare_releases(&a.release, &b.release)).ok_or_else(none)
}

fn said_release(files: &Files, image: &Path) -> Result<Option<String>, BootError> {
    Ok(unpack::release(&files.head(image, unpack::HEADER)?).map(str::to_owned))
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
