//! The durable log: sled, with everything it does not promise by itself.
//!
//! - sled's `flush` hands its buffers to the kernel; they are on the disk after `sync_data` of its
//!   file, and of the files beside it that hold large values.
//! - sled can open a damaged file with some rows missing or old. So each value carries its length
//!   and checksum; a check row, written with every batch, carries the number of rows, the sum of
//!   their checksums and a generation; and a file outside sled's log, `head`, carries the last
//!   generation that was acknowledged. What does not agree is not opened.
//! - A damaged snapshot (`snap.*`) is only an index: it is set aside and sled reads its log instead.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, BackendError, EncodedRow};
use super::row::FORMAT;

/// The check row's key; no other key starts like this.
const CHECK: &[u8] = b"!check";
/// Length and checksum before each value.
const HEADER: usize = 8;

/// How long sled may take to close a log.
const RELEASE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const RELEASE_POLL: Duration = Duration::from_millis(5);

/// All rows, ordered by key.
pub(super) type EncodedRows = Vec<(Vec<u8>, Vec<u8>)>;

pub(super) struct SledBackend {
    db: sled::Db,
    log: File,
    blobs: PathBuf,
    head: File,
    checksums: HashMap<Vec<u8>, u32>,
    generation: u64,
    sum: u64,
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum SledTrouble {
    /// It is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// Something else stands in the way.
    #[error("{0}")]
    Unavailable(String),
}

#[derive(Serialize, Deserialize)]
struct Check {
    /// The rows' [`FORMAT`].
    #[serde(default = "first_format")]
    format: u32,
    generation: u64,
    rows: u64,
    sum: u64,
}

/// Logs of the first format do not say so.
fn first_format() -> u32 {
    1
}

impl SledBackend {
    /// Makes a log of these rows in a folder that does not exist yet.
    pub(super) fn create(dir: &Path, cache: u64, rows: Vec<EncodedRow>) -> Result<(), SledTrouble> {
        let db = open_sled(dir, cache)?;
        write_head(&File::create(dir.join("head")).map_err(unavailable(dir))?, 0)
            .map_err(unavailable(dir))?;
        let mut backend = SledBackend::new(dir, db)?;
        let written = backend.apply(rows).and_then(|()| backend.flush());
        written.map_err(|error| SledTrouble::Unavailable(error.to_string()))?;
        sync_files(dir).and_then(|()| sync_dir(dir)).map_err(unavailable(dir))
    }

    /// Opens a log that [`create`](SledBackend::create) made, and reads all its rows.
    pub(super) fn open(dir: &Path, cache: u64) -> Result<(SledBackend, EncodedRows), SledTrouble> {
        match SledBackend::open_once(dir, cache) {
            Err(SledTrouble::Damaged(why)) if set_snapshots_aside(dir).map_err(unavailable(dir))? => {
                tracing::warn!(dir = %dir.display(), why, "set the snapshot aside to read the whole log");
                SledBackend::open_once(dir, cache)
            }
            result => result,
        }
    }

    fn open_once(dir: &Path, cache: u64) -> Result<(SledBackend, EncodedRows), SledTrouble> {
        let acknowledged = read_head(&dir.join("head"))?;
        let mut backend = SledBackend::new(dir, open_sled(dir, cache)?)?;
        let rows = guarded(|| backend.read_rows()).map_err(SledTrouble::Damaged)??;
        if backend.generation < acknowledged {
            return Err(SledTrouble::Damaged(format!(
                "it ends at generation {} of its rows, but {acknowledged} was written",
                backend.generation
            )));
        }
        Ok((backend, rows))
    }

    fn new(dir: &Path, db: sled::Db) -> Result<SledBackend, SledTrouble> {
        let writable = |name: &str| {
            let path = dir.join(name);
            File::options().write(true).open(&path).map_err(unavailable(&path))
        };
        Ok(SledBackend {
            db,
            log: writable("db")?,
            blobs: dir.join("blobs"),
            head: writable("head")?,
            checksums: HashMap::new(),
            generation: 0,
            sum: 0,
        })
    }

    fn read_rows(&mut self) -> Result<EncodedRows, SledTrouble> {
        let damaged = |why: String| SledTrouble::Damaged(why);
        let mut rows = Vec::new();
        let mut check = None;
        for entry in self.db.iter() {
            let (key, framed) = entry.map_err(|error| classify(&error))?;
            let (checksum, value) = unframe(&key, &framed).ok_or_else(|| {
                damaged(format!("row {:?} does not match its checksum", String::from_utf8_lossy(&key)))
            })?;
            if *key == *CHECK {
                check = serde_json::from_slice::<Check>(value).ok();
                continue;
            }
            self.sum = self.sum.wrapping_add(u64::from(checksum));
            self.checksums.insert(key.to_vec(), checksum);
            rows.push((key.to_vec(), value.to_vec()));
        }
        let check = check.ok_or_else(|| damaged("its check row is missing".to_owned()))?;
        if check.format != FORMAT {
            return Err(SledTrouble::Unavailable(format!(
                "it is of format {}, and this vmlet reads format {FORMAT}: go back to the vmlet that wrote it, or \
                 delete all VMs with that one and move the store's folder away",
                check.format
            )));
        }
        if check.rows != rows.len() as u64 {
            return Err(damaged(format!("it has {} of {} rows", rows.len(), check.rows)));
        }
        if check.sum != self.sum {
            return Err(damaged("some of its rows are not the last ones written".to_owned()));
        }
        self.generation = check.generation;
        Ok(rows)
    }

    fn write(&mut self, batch: Vec<EncodedRow>) -> Result<(), sled::Error> {
        let mut writes = sled::Batch::default();
        for (key, value) in batch {
            let old = match value {
                Some(value) => {
                    let (checksum, framed) = frame(&key, &value);
                    self.sum = self.sum.wrapping_add(u64::from(checksum));
                    writes.insert(key.as_slice(), framed);
                    self.checksums.insert(key, checksum)
                }
                None => {
                    writes.remove(key.as_slice());
                    self.checksums.remove(&key)
                }
            };
            self.sum = self.sum.wrapping_sub(old.map_or(0, u64::from));
        }
        self.generation += 1;
        let rows = self.checksums.len() as u64;
        let check = Check { format: FORMAT, generation: self.generation, rows, sum: self.sum };
        let check = serde_json::to_vec(&check).expect("three numbers");
        writes.insert(CHECK, frame(CHECK, &check).1);
        self.db.apply_batch(writes)
    }

    /// Large values are files of their own, which sled does not sync. They are there before the log
    /// refers to them.
    fn sync_blobs(&self) -> io::Result<()> {
        let mut any = false;
        for entry in fs::read_dir(&self.blobs)? {
            match File::open(entry?.path()) {
                Ok(file) => file.sync_data()?,
                // sled removed it meanwhile: nothing refers to it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            any = true;
        }
        if any { sync_dir(&self.blobs) } else { Ok(()) }
    }
}

impl Backend for SledBackend {
    fn apply(&mut self, batch: Vec<EncodedRow>) -> Result<(), BackendError> {
        let written = guarded(|| self.write(batch)).map_err(BackendError)?;
        written.map_err(|error| BackendError(error.to_string()))
    }

    fn flush(&mut self) -> Result<bool, BackendError> {
        let flushed = guarded(|| self.db.flush()).map_err(BackendError)?;
        flushed.map_err(|error| BackendError(error.to_string()))?;
        self.sync_blobs()
            .and_then(|()| self.log.sync_data())
            // Not synced: a head that lags behind accepts more, never less.
            .and_then(|()| write_head(&self.head, self.generation))
            .map_err(|error| BackendError(error.to_string()))?;
        Ok(true)
    }
}

fn open_sled(dir: &Path, cache: u64) -> Result<sled::Db, SledTrouble> {
    await_release(&dir.join("db"))?;
    let config = sled::Config::new().path(dir).cache_capacity(cache).flush_every_ms(None);
    guarded(|| config.open()).map_err(SledTrouble::Damaged)?.map_err(|error| classify(&error))
}

/// Waits until nobody has the log open: sled closes it in threads of its own, some time after it was
/// dropped, and an opening in between would look like damage.
fn await_release(log: &Path) -> Result<(), SledTrouble> {
    let file = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(unavailable(log))?,
    };
    let deadline = Instant::now() + RELEASE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RELEASE_POLL),
            Err(Errno::WOULDBLOCK) => {
                let why = format!("{} is open in another process; end that one first", log.display());
                return Err(SledTrouble::Unavailable(why));
            }
            Err(error) => return Err(unavailable(log)(error.into())),
        }
    }
}

/// sled panics on some damage: that is an error like any other.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("sled panicked: {text}")
    })
}

/// What the system call refused is not damage; all else is.
fn classify(error: &sled::Error) -> SledTrouble {
    match error {
        sled::Error::Io(io) if io.raw_os_error().is_some() => SledTrouble::Unavailable(error.to_string()),
        _ => SledTrouble::Damaged(error.to_string()),
    }
}

fn unavailable(path: &Path) -> impl Fn(io::Error) -> SledTrouble {
    let path = path.to_owned();
    move |error| SledTrouble::Unavailable(format!("{}: {error}", path.display()))
}

/// The value behind its length and the checksum of key and value.
fn frame(key: &[u8], value: &[u8]) -> (u32, Vec<u8>) {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(key), value);
    let length = u32::try_from(value.len()).expect("records are far smaller than 4 GiB");
    let mut framed = Vec::with_capacity(HEADER + value.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&checksum.to_le_bytes());
    framed.extend_from_slice(value);
    (checksum, framed)
}

fn unframe<'a>(key: &[u8], framed: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (header, value) = framed.split_at_checked(HEADER)?;
    let (checksum, expected) = frame(key, value);
    (expected[..HEADER] == *header).then_some((checksum, value))
}

/// Writes the generation and its checksum, in place and in one sector.
fn write_head(head: &File, generation: u64) -> io::Result<()> {
    let number = generation.to_le_bytes();
    let checksum = crc32c::crc32c(&number).to_le_bytes();
    head.write_all_at(&[&number[..], &checksum[..]].concat(), 0)
}

fn read_head(path: &Path) -> Result<u64, SledTrouble> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes.map_err(unavailable(path))?,
    };
    let parsed = bytes.split_first_chunk::<8>().and_then(|(number, checksum)| {
        (crc32c::crc32c(number).to_le_bytes() == *checksum).then(|| u64::from_le_bytes(*number))
    });
    parsed.ok_or_else(|| SledTrouble::Damaged("its file `head` is missing or damaged".to_owned()))
}

/// Renames `snap.*` to a name that sled does not look for. False if there is none.
fn set_snapshots_aside(dir: &Path) -> io::Result<bool> {
    let mut any = false;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("snap.") {
            let mut aside = std::ffi::OsString::from("damaged.");
            aside.push(&name);
            fs::rename(dir.join(&name), dir.join(aside))?;
            any = true;
        }
    }
    Ok(any)
}

/// Makes the files in a folder durable: sled syncs its `conf` as little as its log.
fn sync_files(dir: &Path) -> io::Result<()> {
    fs::read_dir(dir)?.try_for_each(|entry| File::open(entry?.path())?.sync_all())
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_sled_is_an_error_and_says_what_it_said() {
        assert_eq!(guarded(|| 1), Ok(1));
        let text = "text";
        assert_eq!(guarded(|| panic!("some {text}")), Err::<(), _>("sled panicked: some text".to_owned()));
        assert_eq!(guarded(|| panic!("words")), Err::<(), _>("sled panicked: words".to_owned()));
    }

    #[test]
    fn what_the_system_refuses_is_no_damage() {
        let refused = sled::Error::Io(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()));
        assert!(matches!(classify(&refused), SledTrouble::Unavailable(_)));
        let short = sled::Error::Io(io::Error::from(io::ErrorKind::UnexpectedEof));
        assert!(matches!(classify(&short), SledTrouble::Damaged(_)));
    }
}
