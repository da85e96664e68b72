//! The 512 bytes before every entry of a tar.
//!
//! What lies behind the link's name depends on who wrote it (POSIX.1-2017, pax, "ustar Interchange Format";
//! GNU tar manual, "Basic Tar Format"). Fields are only read where the format has them.

use std::ops::Range;

use crate::image::ImageError;
use crate::image::ext4::Time;

pub(super) const SIZE: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const LENGTH: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const FLAG: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;

/// One header; its checksum is right.
pub(super) struct Header([u8; SIZE]);

/// What lies behind the link's name.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    /// Nothing that is known.
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// `None` for a block of zeros, the end mark.
    pub(super) fn read(bytes: [u8; SIZE]) -> Result<Option<Self>, ImageError> {
        if bytes == [0; SIZE] {
            return Ok(None);
        }
        // The sum of all bytes, its own field taken as blanks; old tars summed signed bytes.
        let summed = || bytes[..CHECKSUM.start].iter().chain(b"        ").chain(&bytes[CHECKSUM.end..]);
        let unsigned: i64 = summed().map(|byte| i64::from(*byte)).sum();
        let signed: i64 = summed().map(|byte| i64::from(byte.cast_signed())).sum();
        match number(&bytes[CHECKSUM]) {
            Some(sum) if sum == unsigned || sum == signed => Ok(Some(Header(bytes))),
            _ => Err(ImageError::invalid("a tar header has a wrong checksum")),
        }
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[FLAG]
    }

    pub(super) fn size(&self) -> Result<u64, ImageError> {
        self.unsigned(LENGTH, "size")
    }

    /// Perhaps negative: some systems' `nobody` is -2.
    pub(super) fn uid(&self) -> Result<i64, ImageError> {
        number(&self.0[UID]).ok_or_else(|| no_number("uid"))
    }

    pub(super) fn gid(&self) -> Result<i64, ImageError> {
        number(&self.0[GID]).ok_or_else(|| no_number("gid"))
    }

    /// Permission bits only: the file's type is in the flag.
    pub(super) fn mode(&self) -> Result<u16, ImageError> {
        Ok((self.unsigned(MODE, "mode")? & 0o7777) as u16)
    }

    pub(super) fn mtime(&self) -> Result<Time, ImageError> {
        let sec = number(&self.0[MTIME]).ok_or_else(|| no_number("mtime"))?;
        Ok(Time { sec, nsec: 0 })
    }

    /// The time of the last access, which few write.
    pub(super) fn atime(&self) -> Option<Time> {
        let field = match self.format() {
            Format::Star => &self.0[STAR_ATIME],
            Format::Gnu if self.gnu_times_are_numbers() => &self.0[GNU_ATIME],
            _ => return None,
        };
        let written = field[0] != 0;
        number(field).filter(|_| written).map(|sec| Time { sec, nsec: 0 })
    }

    /// The name, its prefix included.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[NAME]);
        let prefix = match self.format() {
            Format::Ustar => until_nul(&self.0[PREFIX]),
            Format::Star => until_nul(&self.0[STAR_PREFIX]),
            // Go before 1.8, which made many images, took GNU headers for ones with a prefix.
            Format::Gnu if !self.gnu_times_are_numbers() => until_nul(&self.0[PREFIX]),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> &[u8] {
        until_nul(&self.0[LINK])
    }

    /// Major and minor number; zeros in a format without them.
    pub(super) fn device(&self) -> Result<(u32, u32), ImageError> {
        if self.format() == Format::V7 {
            return Ok((0, 0));
        }
        let part = |range| {
            u32::try_from(self.unsigned(range, "device number")?)
                .map_err(|_| ImageError::invalid("no device has such a number"))
        };
        Ok((part(MAJOR)?, part(MINOR)?))
    }

    /// The header, if it may hold a sparse map of the old GNU kind.
    pub(super) fn gnu(&self) -> Option<&tar::GnuHeader> {
        tar::Header::from_byte_slice(&self.0).as_gnu()
    }

    fn format(&self) -> Format {
        match (&self.0[MAGIC], &self.0[VERSION]) {
            (b"ustar\0", _) if self.0[STAR_TRAILER] == *b"tar\0" => Format::Star,
            // Not all that write prefixes write the version, too.
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        }
    }

    fn gnu_times_are_numbers(&self) -> bool {
        [GNU_ATIME, GNU_CTIME].into_iter().all(|range| number(&self.0[range]).is_some())
    }

    fn unsigned(&self, range: Range<usize>, name: &str) -> Result<u64, ImageError> {
        field(&self.0[range], name)
    }
}

/// A number that cannot be negative.
pub(super) fn field(bytes: &[u8], name: &str) -> Result<u64, ImageError> {
    number(bytes)
        .ok_or_else(|| no_number(name))?
        .try_into()
        .map_err(|_| ImageError::invalid(format!("the tar header's {name} is negative")))
}

fn no_number(name: &str) -> ImageError {
    ImageError::invalid(format!("the tar header's {name} is no number"))
}

/// A text in a field that it need not fill.
pub(super) fn until_nul(text: &[u8]) -> &[u8] {
    &text[..text.iter().position(|byte| *byte == 0).unwrap_or(text.len())]
}

/// A number in a tar header: octal digits, or GNU's big-endian binary with the top bit set.
/// An empty field is 0, as some tars leave unused ones blank.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        // Two's complement; the marker bit is not part of it.
        let mut value =
            if field[0] & 0x40 != 0 { i128::from(field[0]) - 0x100 } else { i128::from(field[0] & 0x7f) };
        for byte in &field[1..] {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    // Blanks and zeros pad numbers on both sides.
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    match until_nul(&field[start..end]) {
        b"" => Some(0),
        digits if digits.iter().all(u8::is_ascii_digit) => {
            i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Some(0o644));
        assert_eq!(number(b"\0\0 0644 \0"), Some(0o644));
        assert_eq!(number(b"644\0junk"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o77_777_777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0x01, 0, 0]), Some(65536));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]), None, "beyond 63 bits");
        assert_eq!(number(b"12x\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(b"9\0"), None);
    }

    /// A header with a right checksum.
    fn header(fields: &[(usize, &[u8])]) -> Header {
        let mut bytes = [0; SIZE];
        for (at, text) in fields {
            bytes[*at..at + text.len()].copy_from_slice(text);
        }
        bytes[CHECKSUM].fill(b' ');
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Header::read(bytes).unwrap().unwrap()
    }

    #[test]
    fn every_format_has_its_own_fields() {
        let name: (usize, &[u8]) = (0, b"name");
        let path = |fields: &[(usize, &[u8])]| header(&[&[name], fields].concat()).path();
        assert_eq!(path(&[(345, b"prefix")]), b"name", "no magic, no prefix");
        assert_eq!(path(&[(257, b"ustar\x0000"), (345, b"prefix")]), b"prefix/name");
        assert_eq!(path(&[(257, b"ustar\0\0\0"), (345, b"prefix")]), b"prefix/name");
        let star = header(&[
            name,
            (257, b"ustar\x0000"),
            (345, &[b'p'; 131]),
            (476, b"00000000012\0"),
            (508, b"tar\0"),
        ]);
        assert_eq!(star.path(), [&[b'p'; 131], &b"/name"[..]].concat());
        assert_eq!(star.atime(), Some(Time { sec: 10, nsec: 0 }));
        let gnu: (usize, &[u8]) = (257, b"ustar  \0");
        assert_eq!(path(&[gnu, (345, b"00000000012\0")]), b"name", "a time, no prefix");
        assert_eq!(header(&[gnu, (345, b"00000000012\0")]).atime(), Some(Time { sec: 10, nsec: 0 }));
        assert_eq!(header(&[gnu]).atime(), None);
        assert_eq!(path(&[gnu, (345, b"var/lib/docker")]), b"var/lib/docker/name", "Go's old mistake");
        assert_eq!(header(&[(329, b"\xffgarbage")]).device().unwrap(), (0, 0));
        assert!(header(&[gnu, (329, b"garbage\0")]).device().is_err());
        assert_eq!(
            header(&[gnu, (329, b"0000007\0"), (337, b"3641100\0")]).device().unwrap(),
            (7, 1_000_000)
        );
    }
}
