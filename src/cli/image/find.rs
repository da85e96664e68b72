//! Which base disk is meant by `debian:12`, `sha256:3f2a…`, `3f2a91`.

use crate::cli::error::CliError;
use crate::image::Reference;
use crate::storage::{DiskReport, Report};

/// Digits of a digest that name it, at least.
const DIGITS: usize = 6;

/// The base disk that a word means; none if there is none.
///
/// # Errors
/// When it means several.
pub(super) fn find<'a>(report: &'a Report, word: &str) -> Result<Option<&'a DiskReport>, CliError> {
    let wanted = canonical(word);
    let named = |disk: &&DiskReport| disk.sources.iter().any(|source| canonical(source) == wanted);
    let of_source = one(word, report.disks.iter().filter(named).collect())?;
    let Some(digits) = digits(word).filter(|_| of_source.is_none()) else { return Ok(of_source) };
    let begins = |disk: &&DiskReport| digits_of(disk).starts_with(digits);
    one(word, report.disks.iter().filter(begins).collect())
}

/// What to say of one that is not there.
pub(super) fn missing(word: &str) -> CliError {
    let error = CliError::new(format!("there is no base disk of {word}"));
    let short = word.strip_prefix("sha256:").is_some_and(|digits| digits.len() < DIGITS);
    if short {
        return error.hint(format!("name at least {DIGITS} digits of a digest"));
    }
    error.hint("`vmlet image ls` shows what there is, `vmlet image pull` gets one")
}

fn one<'a>(word: &str, found: Vec<&'a DiskReport>) -> Result<Option<&'a DiskReport>, CliError> {
    match found.as_slice() {
        [] => Ok(None),
        [disk] => Ok(Some(disk)),
        several => {
            let digests: Vec<String> = several.iter().map(|disk| disk.digest.to_string()).collect();
            let error = CliError::new(format!("{word} may mean {}", digests.join(" or ")));
            Err(error.hint("name more digits of the digest"))
        }
    }
}

/// The digits of a digest, or of its beginning.
fn digits(word: &str) -> Option<&str> {
    let digits = word.strip_prefix("sha256:").unwrap_or(word);
    let right =
        digits.len() >= DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    right.then_some(digits)
}

fn digits_of(disk: &DiskReport) -> String {
    disk.digest.to_string().split_once(':').map(|(_, digits)| digits.to_owned()).unwrap_or_default()
}

/// References with their registry and tag, others as they are.
fn canonical(source: &str) -> String {
    source.parse::<Reference>().map_or_else(|_| source.to_owned(), |reference| reference.to_string())
}
