//! Named pieces of bytes: the files of a folder, or the members of a tar, read where they are.
//!
//! Guarantees: no name leads out of the folder or tar, whatever it or a link says; only regular files are
//! read; nothing is unpacked. A compressed tar is inflated once, into a file without a name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::image::error::printable;
use crate::image::layer::{Archive, Kind, decoder};
use crate::image::limits::check;
use crate::image::local::Job;
use crate::image::{ImageError, Limits};

/// Links from one member to the next that are followed.
const MAX_HOPS: usize = 4;
/// Members of a tar, and the bytes of all their names.
const MAX_MEMBERS: usize = 100_000;
const MAX_NAMES: usize = 16 << 20;
/// How much is copied at once.
const CHUNK: usize = 256 << 10;

/// Where pieces are found by name.
pub(crate) enum Blobs {
    Folder(OwnedFd),
    Tar { file: Arc<File>, members: HashMap<Vec<u8>, Member> },
}

/// A member of a tar.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// With its data's place in the tar.
    File {
        offset: u64,
        size: u64,
    },
    Folder,
    /// The normalised name of another member.
    Link(Vec<u8>),
    /// What is no plain file: a device, a sparse file.
    Other,
}

impl Blobs {
    /// Opens a folder or a tar of the host.
    pub(crate) fn open(path: &Path, job: &Job) -> Result<Self, ImageError> {
        let failed = |error: io::Error| ImageError::file(path, &error);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let file = File::from(opened);
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Ok(Blobs::Folder(file.into()));
        }
        if !metadata.is_file() {
            return Err(ImageError::invalid("it is neither a folder nor a file"));
        }
        let file = plain(file, job)?;
        let members = members(&file, job.limits())?;
        // As unpacking has it: the later of two members replaces the earlier.
        Ok(Blobs::Tar { file: Arc::new(file), members: members.into_iter().collect() })
    }

    /// A piece by its name; none if there is none.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Section>, ImageError> {
        let at = |error: ImageError| error.at(format_args!("\"{}\"", printable(name.as_bytes())));
        let Some(clean) = normalised(name.as_bytes()) else {
            return Err(at(ImageError::invalid("the name leads out of the image")));
        };
        match self {
            Blobs::Folder(folder) => beneath(folder, &clean).map_err(at),
            Blobs::Tar { file, members } => {
                let mut name = &clean;
                for _ in 0..MAX_HOPS {
                    match members.get(name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name = target,
                        Some(Member::File { offset, size }) => {
                            return Ok(Some(Section { file: file.clone(), offset: *offset, size: *size }));
                        }
                        Some(Member::Folder | Member::Other) => {
                            return Err(at(ImageError::invalid("it is not a plain file")));
                        }
                    }
                }
                Err(at(ImageError::invalid("its links lead in a circle, or too far")))
            }
        }
    }
}

/// Opens a plain file in a folder, through no link.
fn beneath(folder: &OwnedFd, name: &[u8]) -> Result<Option<Section>, ImageError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(folder, name, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(ImageError::invalid(
                "it is a symbolic link, or below one; copy the layout with links followed",
            ));
        }
        Err(error) => return Err(ImageError::host("opening", &error.into())),
    };
    let metadata = file.metadata().map_err(|error| ImageError::host("reading", &error))?;
    if !metadata.is_file() {
        return Err(ImageError::invalid("it is not a plain file"));
    }
    Ok(Some(Section { size: metadata.len(), file: Arc::new(file), offset: 0 }))
}

/// A range of a file.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    file: Arc<File>,
    offset: u64,
    pub(crate) size: u64,
}

impl Section {
    pub(crate) fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Section { file, offset, size }
    }

    /// All of it, if it is at most `bound` bytes, the limit called `name`.
    pub(crate) fn bytes(&self, what: &str, name: &str, bound: u64) -> Result<Vec<u8>, ImageError> {
        check(what, name, self.size, bound)?;
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, self.offset).map_err(|error| ImageError::host(what, &error))?;
        Ok(bytes)
    }

    /// Bytes that a copy of it takes at most: holes of the file take none.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        Ok(self.size.min(self.file.metadata()?.blocks() * 512))
    }

    pub(crate) fn reader(&self) -> SectionReader {
        SectionReader { section: self.clone(), position: 0 }
    }
}

/// Reads a range from its start, whoever else reads the file.
pub(crate) struct SectionReader {
    section: Section,
    position: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Section { file, offset, size } = &self.section;
        let wanted = buffer.len().min(usize::try_from(size - self.position).unwrap_or(usize::MAX));
        let count = file.read_at(&mut buffer[..wanted], offset + self.position)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// The file itself, or what it inflates to.
pub(crate) fn plain(mut file: File, job: &Job) -> Result<File, ImageError> {
    let mut magic = [0; 4];
    let known = file.read_at(&mut magic, 0).map_err(|error| ImageError::host("reading", &error))?;
    if !crate::image::layer::is_compressed(&magic[..known]) {
        return Ok(file);
    }
    file.seek(SeekFrom::Start(0)).map_err(|error| ImageError::host("reading", &error))?;
    let compressed = file.metadata().map_err(|error| ImageError::host("reading", &error))?.len();
    let _room = job.promise(compressed)?;
    let inflated = job.unnamed()?;
    let source =
        decoder(file).map_err(|error| ImageError::from_read("the archive cannot be decompressed", error))?;
    copy(source, &inflated, Some(compressed), job)?;
    Ok(inflated)
}

/// Copies all into an empty file, but for what is zero; returns how much it was. `compressed` is how many bytes
/// it was before it was inflated.
pub(crate) fn copy(
    mut from: impl Read,
    to: &File,
    compressed: Option<u64>,
    job: &Job,
) -> Result<u64, ImageError> {
    let failed = |error: io::Error| ImageError::host("writing", &error);
    let (limits, mut buffer, mut length) = (job.limits(), vec![0; CHUNK], 0u64);
    loop {
        job.go_on()?;
        let count = read(&mut from, &mut buffer)?;
        if count == 0 {
            break;
        }
        let piece = &buffer[..count];
        if piece.iter().any(|byte| *byte != 0) {
            to.write_all_at(piece, length).map_err(failed)?;
        }
        length += count as u64;
        check("the size of the archive", "unpacked_bytes", length, limits.unpacked_bytes)?;
        if let Some(compressed) = compressed {
            limits.check_ratio("its size over its compressed size", length, compressed)?;
        }
    }
    to.set_len(length).map_err(failed)?;
    Ok(length)
}

/// Reads what is left and forgets it.
pub(crate) fn drain(mut from: impl Read, job: &Job) -> Result<(), ImageError> {
    let mut buffer = vec![0; CHUNK];
    while read(&mut from, &mut buffer)? > 0 {
        job.go_on()?;
    }
    Ok(())
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ImageError> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read.map_err(|error| ImageError::from_read("it cannot be read", error)),
        }
    }
}

/// The members of a tar in its order, found in one pass over its headers.
pub(crate) fn members(file: &File, limits: &Limits) -> Result<Vec<(Vec<u8>, Member)>, ImageError> {
    let length = file.metadata().map_err(|error| ImageError::host("reading", &error))?.len();
    let mut reader = file.try_clone().map_err(|error| ImageError::host("reading", &error))?;
    reader.seek(SeekFrom::Start(0)).map_err(|error| ImageError::host("reading", &error))?;
    let mut archive = Archive::new(BufReader::new(reader), limits);
    let (mut members, mut names) = (Vec::new(), 0);
    while let Some(entry) = archive.next()? {
        names += entry.path.len();
        if members.len() >= MAX_MEMBERS || names > MAX_NAMES {
            return Err(ImageError::invalid("the archive has more than 100000 files, or 16 MiB of names"));
        }
        let at = |error: ImageError| error.at(format_args!("\"{}\"", printable(&entry.path)));
        let Some(name) = normalised(&entry.path) else {
            return Err(at(ImageError::invalid("the name leads out of the archive")));
        };
        let member = match entry.kind {
            Kind::File(size) => {
                let offset = archive.leave_data().map_err(|error| ImageError::from_read("reading", error))?;
                if offset.checked_add(size).is_none_or(|end| end > length) {
                    return Err(at(ImageError::invalid("the archive breaks off in it")));
                }
                Member::File { offset, size }
            }
            Kind::Directory => Member::Folder,
            // A symlink starts at its own folder, a hard link at the archive's root.
            Kind::Symlink(target) => {
                let folder = name.rsplitn(2, |byte| *byte == b'/').nth(1).unwrap_or_default();
                let whole = if target.starts_with(b"/") { target } else { [folder, &target].join(&b'/') };
                normalised(&whole).map_or(Member::Other, Member::Link)
            }
            Kind::Hardlink(target) => normalised(&target).map_or(Member::Other, Member::Link),
            Kind::Sparse(_) | Kind::Special(_) => Member::Other,
        };
        members.push((name, member));
    }
    if members.is_empty() {
        return Err(ImageError::invalid("it is no tar, or an empty one"));
    }
    Ok(members)
}

/// Without `.`, doubled slashes and a leading one; none if `..` leads above the start.
pub(crate) fn normalised(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}
