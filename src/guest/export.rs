//! A stopped VM's merged root as a tar, for an image to be made of it.
//!
//! In: the VM's two disks, joined by the kernel for reading only, and what the new image is to have of its own.
//! Out: one tar on the fourth disk, sorted by name. What makes a machine this machine is left out, so that
//! two VMs of the image are not twins. The host believes nothing of it: it is a layer like any other.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};
use vmlet_wire::Export;

use crate::boot::{self, EXPORT};
use crate::console;
use crate::failure::{During, Failure};

/// Bytes that go to the disk at once.
const CHUNK: usize = 1 << 20;
/// Their folders stay, what is in them is of one boot.
const OF_ONE_BOOT: [&str; 4] = ["proc", "run", "sys", "tmp"];
/// Emptied, as systemd wants it: the next boot makes one (machine-id(5), "First Boot Semantics").
const MACHINE_ID: &str = "etc/machine-id";
/// Secrets and identities of this machine, which the next boot makes anew.
const OF_ONE_MACHINE: [&str; 3] =
    ["var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret"];
const HOST_KEYS: &str = "etc/ssh";
const ROOT_HOME: &str = "root";
const SSH_DIR: &str = "root/.ssh";
const AUTHORIZED_KEYS: &str = "root/.ssh/authorized_keys";

/// Writes the tar. Returns the exit code for the host: 0 if all of it is on the disk.
pub(crate) fn run(wanted: &Export) -> i32 {
    match write(wanted) {
        Ok(()) => 0,
        Err(failure) => {
            console::say(&failure);
            failure.code
        }
    }
}

fn write(wanted: &Export) -> Result<(), Failure> {
    let root = boot::join_for_reading()?;
    let disk = OpenOptions::new().write(true).open(EXPORT).during(|| format!("open {EXPORT}"))?;
    let mut archive = Archive::new(BufWriter::with_capacity(CHUNK, disk));
    archive.add_tree(&root, wanted)?;
    let disk = archive.finish().and_then(|out| Ok(out.into_inner()?)).during(|| format!("write {EXPORT}"))?;
    disk.sync_all().during(|| format!("write {EXPORT}"))
}

/// Whether the entry at `path`, relative to the root, is left out.
fn is_left_out(path: &Path) -> bool {
    let within = |dir: &str| path.parent() == Some(Path::new(dir));
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let host_key = name.starts_with(b"ssh_host_") && (name.ends_with(b"_key") || name.ends_with(b"_key.pub"));
    OF_ONE_BOOT.iter().any(|dir| within(dir))
        || OF_ONE_MACHINE.iter().any(|file| path == Path::new(file))
        || (within(HOST_KEYS) && host_key)
        || (within("var/lib/dhcp") && name.ends_with(b".leases"))
}

struct Archive<W: Write> {
    tar: Builder<W>,
    /// Where files of several names were first seen.
    first: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Archive { tar: Builder::new(out), first: HashMap::new() }
    }

    /// Adds everything below `root`, parents before children, and the keys at the end.
    fn add_tree(&mut self, root: &Path, wanted: &Export) -> Result<(), Failure> {
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let place = root.join(&path);
            let reading = || format!("read {}", Path::new("/").join(&path).display());
            let metadata = place.symlink_metadata().during(reading)?;
            self.add(&path, &place, &metadata).during(reading)?;
            if metadata.is_dir() {
                let mut names: BTreeSet<OsString> = BTreeSet::new();
                for entry in fs::read_dir(&place).during(reading)? {
                    names.insert(entry.during(reading)?.file_name());
                }
                // Last in, first out.
                waiting
                    .extend(names.iter().rev().map(|name| path.join(name)).filter(|path| !is_left_out(path)));
            }
        }
        self.add_keys(root, &wanted.authorized_keys).during(|| format!("write /{AUTHORIZED_KEYS}"))
    }

    fn add(&mut self, path: &Path, place: &Path, metadata: &Metadata) -> io::Result<()> {
        let mut header = header(metadata);
        let kind = metadata.file_type();
        let mut records = attributes(place)?;
        // Whole seconds and the rest, which is never negative.
        let mtime = format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec());
        if metadata.mtime() >= 0 && metadata.mtime_nsec() != 0 {
            records.push(("mtime".to_owned(), mtime.into_bytes()));
        }
        if kind.is_file() && metadata.nlink() > 1 {
            let first = self.first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_owned());
            if first != path {
                let target = first.clone();
                header.set_entry_type(EntryType::Link);
                return self.append(header, path, Some(&target), Vec::new(), io::empty());
            }
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return self.append(header, path, Some(&fs::read_link(place)?), records, io::empty());
        } else if kind.is_char_device() || kind.is_block_device() {
            let block = kind.is_block_device();
            header.set_entry_type(if block { EntryType::Block } else { EntryType::Char });
            header.set_device_major(major(metadata.rdev()))?;
            header.set_device_minor(minor(metadata.rdev()))?;
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
        } else if kind.is_file() {
            let empty = path == Path::new(MACHINE_ID);
            header.set_size(if empty { 0 } else { metadata.len() });
            let content = File::open(place)?.take(if empty { 0 } else { metadata.len() });
            return self.append(header, path, None, records, content);
        } else {
            // A socket: nobody listens on it any more.
            return Ok(());
        }
        self.append(header, path, None, records, io::empty())
    }

    /// The keys that may log in as root, in place of those that were there.
    fn add_keys(&mut self, root: &Path, keys: &[String]) -> io::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        for dir in [ROOT_HOME, SSH_DIR] {
            if root.join(dir).symlink_metadata().is_ok_and(|found| found.is_dir()) {
                continue;
            }
            let mut header = seed(EntryType::Directory, 0o700);
            header.set_size(0);
            self.append(header, Path::new(dir), None, Vec::new(), io::empty())?;
        }
        let text = keys.join("\n") + "\n";
        let mut header = seed(EntryType::Regular, 0o600);
        header.set_size(text.len() as u64);
        self.append(header, Path::new(AUTHORIZED_KEYS), None, Vec::new(), text.as_bytes())
    }

    /// One entry, with a PAX header before it for what does not fit (POSIX.1-2017, pax, "pax Extended
    /// Header").
    fn append(
        &mut self,
        mut header: Header,
        path: &Path,
        target: Option<&Path>,
        mut records: Vec<(String, Vec<u8>)>,
        content: impl Read,
    ) -> io::Result<()> {
        let mut name = b"./".to_vec();
        name.extend_from_slice(path.as_os_str().as_bytes());
        let linked = header.entry_type() == EntryType::Link;
        let target = target.map(|target| {
            let prefix: &[u8] = if linked { b"./" } else { b"" };
            [prefix, target.as_os_str().as_bytes()].concat()
        });
        let old = header.as_old_mut();
        if !fit(&mut old.name, &name) {
            records.push(("path".to_owned(), name));
        }
        if let Some(target) = target
            && !fit(&mut old.linkname, &target)
        {
            records.push(("linkpath".to_owned(), target));
        }
        header.set_cksum();
        self.tar
            .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        self.tar.append(&header, content)
    }

    fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }
}

/// What all kinds of entries have. Numbers that are too large for tar's octal digits are written in binary.
fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    // Before 1970 is 1970: tar's field has no sign.
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header.set_entry_type(EntryType::Regular);
    header
}

/// An entry that the disks do not have.
fn seed(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Copies `text` into a field of the header, if it has room.
fn fit(field: &mut [u8; 100], text: &[u8]) -> bool {
    let fits = text.len() <= field.len();
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    fits
}

/// The extended attributes, as star and libarchive write them. The kernel hides overlayfs' own.
fn attributes(place: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut records = Vec::new();
    for name in grown(|buffer| llistxattr(place, buffer))?.split(|byte| *byte == 0) {
        let Ok(text) = std::str::from_utf8(name) else { continue };
        if !text.is_empty() {
            let value = grown(|buffer| lgetxattr(place, name, buffer))?;
            records.push((format!("SCHILY.xattr.{text}"), value));
        }
    }
    Ok(records)
}

/// All that a call returns that fills a buffer: asked with a larger one until it fits.
fn grown(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    /// The kernel's own bound on lists and values (XATTR_SIZE_MAX).
    const MAX: usize = 64 << 10;
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(Errno::RANGE) if buffer.len() < MAX => buffer.resize(MAX, 0),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// Name, kind, mode, link target, content.
    type Entry = (String, EntryType, u32, Option<PathBuf>, Vec<u8>);

    fn listing(root: &Path, keys: &[&str]) -> Vec<Entry> {
        let mut archive = Archive::new(Vec::new());
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        archive.add_tree(root, &Export { authorized_keys: keys }).unwrap();
        let bytes = archive.finish().unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.into_owned());
            let header = entry.header();
            found.push((path, header.entry_type(), header.mode().unwrap(), link, content));
        }
        found
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn what_makes_a_machine_is_left_out() {
        let dir = tree(&[
            ("etc/machine-id", "0123456789abcdef"),
            ("etc/hostname", "web"),
            ("etc/ssh/ssh_host_rsa_key", "secret"),
            ("etc/ssh/ssh_host_rsa_key.pub", "public"),
            ("etc/ssh/sshd_config", "Port 22"),
            ("run/lock", ""),
            ("tmp/left", ""),
            ("var/lib/dbus/machine-id", "0123456789abcdef"),
            ("var/lib/systemd/random-seed", "secret"),
        ]);
        let listing = listing(dir.path(), &[]);
        let files: Vec<&str> = listing
            .iter()
            .filter(|entry| entry.1 == EntryType::Regular)
            .map(|entry| entry.0.as_str())
            .collect();
        assert_eq!(files, ["./etc/hostname", "./etc/machine-id", "./etc/ssh/sshd_config"]);
        let machine_id = listing.iter().find(|entry| entry.0 == "./etc/machine-id").unwrap();
        assert_eq!(machine_id.4, b"");
        assert!(listing.iter().any(|entry| entry.0 == "./run" && entry.1 == EntryType::Directory));
    }

    #[test]
    fn names_links_and_modes_survive() {
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        let dir = tree(&[("a", "same"), (&long, "deep")]);
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        symlink("/x".repeat(80), dir.path().join("s")).unwrap();
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o4711)).unwrap();
        let listing = listing(dir.path(), &[]);
        let find = |path: &str| listing.iter().find(|entry| entry.0 == path).unwrap().clone();
        assert_eq!((find("./a").2, find("./a").4), (0o4711, b"same".to_vec()));
        assert_eq!((find("./b").1, find("./b").3), (EntryType::Link, Some(PathBuf::from("./a"))));
        assert_eq!(find("./s").3, Some(PathBuf::from("/x".repeat(80))));
        assert_eq!(find(&format!("./{long}")).4, b"deep");
    }

    #[test]
    fn keys_are_seeded_in_place_of_the_old_ones() {
        let dir = tree(&[("etc/hostname", "web")]);
        let listing = listing(dir.path(), &["ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"]);
        let tail: Vec<(&str, u32, &[u8])> = listing
            .iter()
            .rev()
            .take(3)
            .map(|entry| (entry.0.as_str(), entry.2, entry.4.as_slice()))
            .collect();
        let text: &[u8] = b"ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n";
        assert_eq!(
            tail,
            [
                ("./root/.ssh/authorized_keys", 0o600, text),
                ("./root/.ssh", 0o700, b""),
                ("./root", 0o700, b"")
            ]
        );
    }
}
