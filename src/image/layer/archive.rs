//! Iterates over the entries of a tar stream.
//!
//! The `tar` crate's iterator is not used: it reads long names, PAX records and sparse maps into memory
//! whatever their size, turns holes into zeros, and cannot read negative times.
//! Where readers disagree, this one does what Go's archive/tar does, which most images were made with:
//! - links, directories and devices have no data whatever their size says;
//! - a GNU long name beats a PAX path, and the later of two PAX headers the earlier;
//! - global PAX headers are skipped, and what stands before one says nothing about the entry behind it;
//! - two blocks of zeros end the archive, and so does the end of the stream after one, or between two entries,
//!   the last one's padding missing or not; anything else after one block of zeros is damage;
//! - a name that ends in a slash makes a directory of an entry only if its type is the oldest one (NUL).

use std::io::{self, BufRead, Read, Seek, Write};

use tar::{GnuExtSparseHeader, GnuSparseHeader};

use super::header::{self, Header, field, until_nul};
use super::pax::Pax;
use super::sparse::{Segment, SparseMap, read_map};
use super::xattrs::{self, Bearer};
use crate::image::error::printable;
use crate::image::ext4::{Meta, Special};
use crate::image::limits::check;
use crate::image::{ImageError, Limits};

const BLOCK: u64 = 512;

/// One thing that a layer says about the file system.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As written: not normalised, not checked.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(super) meta: Meta,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// With this many bytes of data.
    File(u64),
    Sparse(SparseMap),
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Special(Special),
}

/// A tar stream between two entries, or within the data of one.
pub(crate) struct Archive<'a, R> {
    reader: R,
    limits: &'a Limits,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// Bytes from the end of the data to the next header.
    padding: u64,
}

/// What the headers before an entry's own say about it.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a, R: BufRead> Archive<'a, R> {
    pub(crate) fn new(reader: R, limits: &'a Limits) -> Self {
        Archive { reader, limits, data: 0, padding: 0 }
    }

    /// Skips what is left of the current entry and reads the next; `None` at the end mark or the end
    /// of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.size()?;
            match header.flag() {
                b'x' => extensions.pax = Pax::parse(&self.small(size)?, self.limits)?,
                b'L' => extensions.long_name = self.long_text(size)?,
                b'K' => extensions.long_link = self.long_text(size)?,
                b'g' => {
                    extensions = Extensions::default();
                    self.set_data(size);
                }
                _ => {
                    let path = extensions.path(&header);
                    let entry = self.entry(&header, size, extensions, path.clone());
                    return entry
                        .map(Some)
                        .map_err(|error| error.at(format_args!("\"{}\"", printable(&path))));
                }
            }
        }
    }

    /// Copies the next `length` bytes of the current entry's data.
    pub(super) fn copy(&mut self, mut length: u64, out: &mut impl Write) -> Result<(), CopyError> {
        debug_assert!(length <= self.data, "callers copy what the entry has");
        while length > 0 {
            let buffer = self.reader.fill_buf().map_err(CopyError::Read)?;
            if buffer.is_empty() {
                return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            let count = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            out.write_all(&buffer[..count]).map_err(CopyError::Write)?;
            self.reader.consume(count);
            self.data -= count as u64;
            length -= count as u64;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        extensions: Extensions,
        path: Vec<u8>,
    ) -> Result<Entry, ImageError> {
        let size = extensions.pax.size.unwrap_or(size);
        let link = extensions.link(header);
        let Extensions { pax, .. } = extensions;
        let uid = owner(pax.uid.map_or_else(|| header.uid(), Ok)?)?;
        let gid = owner(pax.gid.map_or_else(|| header.gid(), Ok)?)?;
        let mtime = pax.mtime.map_or_else(|| header.mtime(), Ok)?;
        let atime = pax.atime.or_else(|| header.atime());
        let mut mode = header.mode()?;
        let kind = match header.flag() {
            b'\0' if path.ends_with(b"/") => {
                self.set_data(size);
                Kind::Directory
            }
            b'\0' | b'0' | b'7' => {
                self.set_data(size);
                if pax.sparse.is_present() { self.pax_sparse(pax.sparse)? } else { Kind::File(size) }
            }
            b'S' => self.gnu_sparse(header, size)?,
            b'1' => Kind::Hardlink(link),
            b'2' => Kind::Symlink(link),
            b'3' => {
                let (major, minor) = header.device()?;
                Kind::Special(Special::Char { major, minor })
            }
            b'4' => {
                let (major, minor) = header.device()?;
                Kind::Special(Special::Block { major, minor })
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Special(Special::Fifo),
            other => {
                let flag = printable(&[other]);
                return Err(ImageError::invalid(format!("entries of type '{flag}' are not supported")));
            }
        };
        if matches!(kind, Kind::Symlink(_)) {
            // Linux has no others, whatever the header says.
            mode = 0o777;
        }
        let mut named = pax.xattrs;
        for (name, acl) in [(xattrs::ACCESS, pax.access_acl), (xattrs::DEFAULT, pax.default_acl)] {
            let Some(acl) = acl.filter(|_| named.iter().all(|(earlier, _)| earlier != name)) else {
                continue;
            };
            if name == xattrs::ACCESS && !matches!(kind, Kind::Symlink(_)) {
                mode = xattrs::mode_of_acl(&acl, mode)?;
            }
            named.push((name.to_vec(), acl));
        }
        let xattrs = xattrs::fit(named, kind.bearer(), mode)?;
        Ok(Entry { path, kind, meta: Meta { mode, uid, gid, mtime, atime, xattrs } })
    }

    fn pax_sparse(&mut self, sparse: super::pax::PaxSparse) -> Result<Kind, ImageError> {
        let mut segments = sparse.segments;
        if sparse.map_in_data {
            let mut data = Read::take(&mut self.reader, self.data);
            let (map, taken) = read_map(&mut data, self.limits)?;
            segments = map;
            // The map is padded to whole blocks.
            let blocks = taken.next_multiple_of(BLOCK);
            self.data -= taken;
            let rest = (blocks - taken).min(self.data);
            self.copy(rest, &mut io::sink())?;
        }
        let size = sparse.size.ok_or_else(|| ImageError::invalid("a sparse file without its size"))?;
        SparseMap::new(size, segments, self.data, self.limits).map(Kind::Sparse)
    }

    /// The old format: four segments in the header, 21 in each block that may follow it.
    fn gnu_sparse(&mut self, header: &Header, stored: u64) -> Result<Kind, ImageError> {
        let gnu = header.gnu().ok_or_else(|| ImageError::invalid("a sparse entry without a GNU header"))?;
        let size = field(&gnu.realsize, "real size")?;
        let mut segments = Vec::new();
        add_segments(&gnu.sparse, &mut segments)?;
        let mut extended = gnu.is_extended();
        while extended {
            let bound = self.limits.sparse_segments;
            check("the number of segments of a sparse file", "sparse_segments", segments.len(), bound)?;
            let mut more = GnuExtSparseHeader::new();
            self.reader.read_exact(more.as_mut_bytes()).map_err(broken)?;
            add_segments(more.sparse(), &mut segments)?;
            extended = more.is_extended();
        }
        self.set_data(stored);
        SparseMap::new(size, segments, stored, self.limits).map(Kind::Sparse)
    }

    fn set_data(&mut self, size: u64) {
        self.data = size;
        // At most 511, and a size near 2^64 ends in an unexpected end of the stream.
        self.padding = size.wrapping_neg() % BLOCK;
    }

    fn skip(&mut self) -> Result<(), ImageError> {
        let data = self.data;
        self.copy(data, &mut io::sink())?;
        let mut padding = std::mem::take(&mut self.padding);
        while padding > 0 {
            let buffer = self.reader.fill_buf().map_err(broken)?;
            let count = buffer.len().min(padding as usize);
            if count == 0 {
                break;
            }
            self.reader.consume(count);
            padding -= count as u64;
        }
        Ok(())
    }

    /// Reads the data of an extension header into memory.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        check("an extended tar header", "header_bytes", size, self.limits.header_bytes)?;
        self.set_data(size);
        let mut data = Vec::new();
        self.copy(size, &mut data)?;
        Ok(data)
    }

    /// A name that is too long for a header. An empty one says nothing.
    fn long_text(&mut self, size: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let mut text = self.small(size)?;
        text.truncate(until_nul(&text).len());
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        if self.reader.fill_buf().map_err(broken)?.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0; header::SIZE];
        self.reader.read_exact(&mut bytes).map_err(broken)?;
        match Header::read(bytes)? {
            None => self.end().map(|()| None),
            header => Ok(header),
        }
    }

    /// Reads what follows a block of zeros: at most another one.
    fn end(&mut self) -> Result<(), ImageError> {
        let mut block = Vec::new();
        Read::take(&mut self.reader, BLOCK).read_to_end(&mut block).map_err(broken)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(ImageError::invalid("half an end mark, a single block of zeros, is within the archive"))
    }
}

impl Kind {
    fn bearer(&self) -> Bearer {
        match self {
            Kind::File(_) | Kind::Sparse(_) => Bearer::File,
            Kind::Directory => Bearer::Directory,
            Kind::Symlink(_) => Bearer::Symlink,
            // A hard link's own attributes are not used.
            Kind::Special(_) | Kind::Hardlink(_) => Bearer::Special,
        }
    }
}

impl<R: BufRead + Seek> Archive<'_, R> {
    /// Passes the current entry's data over without reading it. Returns where it starts.
    pub(crate) fn leave_data(&mut self) -> io::Result<u64> {
        let start = self.reader.stream_position()?;
        let length = i64::try_from(std::mem::take(&mut self.data)).map_err(io::Error::other)?;
        self.reader.seek_relative(length)?;
        Ok(start)
    }
}

impl Extensions {
    fn path(&self, header: &Header) -> Vec<u8> {
        let said = self.pax.sparse.name.as_ref().or(self.long_name.as_ref()).or(self.pax.path.as_ref());
        said.cloned().unwrap_or_else(|| header.path())
    }

    fn link(&self, header: &Header) -> Vec<u8> {
        let said = self.long_link.as_ref().or(self.pax.link.as_ref()).cloned();
        said.unwrap_or_else(|| header.link().to_vec())
    }
}

/// A user or a group as chown(2) takes its number: those below zero count down from 2^32, and -1 changes nothing,
/// so that the file stays root's.
fn owner(id: i64) -> Result<u32, ImageError> {
    match u32::try_from(id).ok().or_else(|| Some(i32::try_from(id).ok()?.cast_unsigned())) {
        Some(u32::MAX) => Ok(0),
        Some(id) => Ok(id),
        None => Err(ImageError::invalid(format!("{id} is no user or group id"))),
    }
}

/// Which end of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// For copies into memory or nowhere, which cannot fail to write.
impl From<CopyError> for ImageError {
    fn from(error: CopyError) -> Self {
        let (CopyError::Read(error) | CopyError::Write(error)) = error;
        broken(error)
    }
}

fn broken(error: io::Error) -> ImageError {
    ImageError::from_read("the layer breaks off or cannot be decompressed", error)
}

fn add_segments(headers: &[GnuSparseHeader], segments: &mut Vec<Segment>) -> Result<(), ImageError> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        let offset = field(&header.offset, "sparse offset")?;
        segments.push(Segment { offset, length: field(&header.numbytes, "sparse length")? });
    }
    Ok(())
}
