//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").

use super::sparse::Segment;
use super::xattrs::{Xattr, acl_of_text, decode_name, decode_value, is_kept};
use crate::image::error::printable;
use crate::image::ext4::Time;
use crate::image::limits::check;
use crate::image::{ImageError, Limits};

/// What the extended header of an entry says about it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// As in a header, perhaps negative.
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    /// As star and most others spell them, then those that only libarchive spelled.
    pub(super) xattrs: Vec<Xattr>,
    /// ACLs in words, for system calls; if there is one in `xattrs`, that one counts.
    pub(super) access_acl: Option<Vec<u8>>,
    pub(super) default_acl: Option<Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

/// The three ways in which GNU tar puts a sparse file into PAX headers.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PaxSparse {
    /// 1.0: the map is at the start of the data.
    pub(super) map_in_data: bool,
    /// 0.0 and 0.1: the map is in the header.
    pub(super) segments: Vec<Segment>,
    /// The file's own name, as `path` is a made-up one.
    pub(super) name: Option<Vec<u8>>,
    /// The file's length, holes included.
    pub(super) size: Option<u64>,
    offset: Option<u64>,
}

impl Pax {
    /// Parses the records of one header; a later record replaces an earlier one.
    pub(super) fn parse(mut records: &[u8], limits: &Limits) -> Result<Self, ImageError> {
        let mut pax = Pax::default();
        let mut libarchive = Vec::new();
        let mut xattr_bytes = 0;
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or_else(|| {
                ImageError::invalid(format!("malformed PAX record \"{}\"", printable(records)))
            })?;
            records = rest;
            if let Some((spelling, (name, value))) = xattr(key, value)? {
                if is_kept(&name) {
                    xattr_bytes += name.len() + value.len();
                    check("the size of extended attributes", "xattr_bytes", xattr_bytes, limits.xattr_bytes)?;
                    let xattrs = match spelling {
                        Spelling::Star => &mut pax.xattrs,
                        Spelling::Libarchive => &mut libarchive,
                    };
                    xattrs.retain(|(earlier, _)| *earlier != name);
                    xattrs.push((name, value));
                }
                continue;
            }
            pax.set(key, value, limits)?
                .ok_or_else(|| ImageError::invalid(format!("malformed PAX value of {}", printable(key))))?;
        }
        libarchive.retain(|(name, _)| pax.xattrs.iter().all(|(earlier, _)| earlier != name));
        pax.xattrs.append(&mut libarchive);
        Ok(pax)
    }

    /// `None` if the value is malformed. Keys that do not matter to a file system are skipped.
    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<Option<()>, ImageError> {
        let sparse = &mut self.sparse;
        let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        let id = || std::str::from_utf8(value).ok()?.parse::<i64>().ok();
        let text = || Some(value.to_vec()).filter(|text| !text.is_empty() && !text.contains(&0));
        // An empty value takes back what was said before.
        let known = match key {
            b"path" => set(&mut self.path, text()) || value.is_empty(),
            b"linkpath" => set(&mut self.link, text()) || value.is_empty(),
            b"size" => set(&mut self.size, number()) || value.is_empty(),
            b"uid" => set(&mut self.uid, id()) || value.is_empty(),
            b"gid" => set(&mut self.gid, id()) || value.is_empty(),
            b"mtime" => set(&mut self.mtime, time(value)) || value.is_empty(),
            b"atime" => set(&mut self.atime, time(value)) || value.is_empty(),
            _ if value.is_empty() => true,
            b"SCHILY.acl.access" => {
                self.access_acl = acl_of_text(value);
                true
            }
            b"SCHILY.acl.default" => {
                self.default_acl = acl_of_text(value);
                true
            }
            b"GNU.sparse.major" => number().inspect(|major| sparse.map_in_data = *major == 1).is_some(),
            b"GNU.sparse.name" => set(&mut sparse.name, text()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => set(&mut sparse.size, number()),
            b"GNU.sparse.offset" => set(&mut sparse.offset, number()),
            b"GNU.sparse.numbytes" => sparse.add(sparse.offset, number()),
            b"GNU.sparse.map" => sparse.map(value),
            _ => true,
        };
        let segments = self.sparse.segments.len();
        check(
            "the number of segments of a sparse file",
            "sparse_segments",
            segments,
            limits.sparse_segments,
        )?;
        Ok(known.then_some(()))
    }
}

enum Spelling {
    Star,
    Libarchive,
}

/// The attribute that a record holds, if any.
fn xattr(key: &[u8], value: &[u8]) -> Result<Option<(Spelling, Xattr)>, ImageError> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        return Ok(Some((Spelling::Star, (name.to_vec(), value.to_vec()))));
    }
    let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") else { return Ok(None) };
    match decode_name(name).zip(decode_value(value)) {
        Some(xattr) => Ok(Some((Spelling::Libarchive, xattr))),
        None => Err(ImageError::invalid(format!("malformed PAX value of {}", printable(key)))),
    }
}

fn set<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    *field = value;
    field.is_some()
}

impl PaxSparse {
    fn add(&mut self, offset: Option<u64>, length: Option<u64>) -> bool {
        let (Some(offset), Some(length)) = (offset, length) else { return false };
        self.segments.push(Segment { offset, length });
        true
    }

    /// `offset,length,offset,length…`
    fn map(&mut self, value: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(value) else { return false };
        self.segments.clear();
        let mut numbers = text.split(',').map(|number| number.parse().ok());
        while let Some(offset) = numbers.next() {
            if !self.add(offset, numbers.next().flatten()) {
                return false;
            }
        }
        true
    }

    /// Whether the header speaks of a sparse file at all.
    pub(super) fn is_present(&self) -> bool {
        self.map_in_data || self.size.is_some() || !self.segments.is_empty()
    }
}

/// One record: its length in decimal, a blank, `key=value`, a newline.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..blank]).ok()?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let body = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    (equals > 0).then_some((&body[..equals], &body[equals + 1..], rest))
}

/// Decimal seconds, perhaps negative, perhaps with a fraction, of which nanoseconds are kept.
fn time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || !whole.bytes().all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let sec: i64 = whole.parse().ok()?;
    let nsec: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    Some(match (negative, nsec) {
        (false, nsec) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec: 0 },
        (true, nsec) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn times() {
        assert_eq!(time(b"12"), Some(Time { sec: 12, nsec: 0 }));
        assert_eq!(time(b"12.5"), Some(Time { sec: 12, nsec: 500_000_000 }));
        assert_eq!(time(b"1.1234567899"), Some(Time { sec: 1, nsec: 123_456_789 }));
        assert_eq!(time(b"-1.25"), Some(Time { sec: -2, nsec: 750_000_000 }));
        assert_eq!(time(b"-3"), Some(Time { sec: -3, nsec: 0 }));
        for bad in [&b"x"[..], b"1.-5", b"--1", b"", b".", b"99999999999999999999", b"+1"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn overlay_attributes_are_dropped() {
        let limits = Limits::default();
        let kept = |name: &str| {
            let bytes = encode(format!("SCHILY.xattr.{name}").as_bytes(), b"y");
            !Pax::parse(&bytes, &limits).unwrap().xattrs.is_empty()
        };
        assert!(
            kept("user.a")
                && kept("security.capability")
                && kept("trusted.a")
                && kept("system.posix_acl_default")
        );
        assert!(!kept("trusted.overlay.opaque") && !kept("user.overlay.redirect"));
        assert!(!kept("com.apple.provenance") && !kept("system.nfs4_acl") && !kept("user."));
    }

    #[test]
    fn libarchive_attributes_count_where_no_others_are() {
        let records = [
            encode(b"LIBARCHIVE.xattr.user.both", b"bm90"),
            encode(b"SCHILY.xattr.user.both", b"\0binary\n\xff"),
            encode(b"LIBARCHIVE.xattr.user.one%3Dtwo", b"AP8"),
        ]
        .concat();
        let pax = Pax::parse(&records, &Limits::default()).unwrap();
        let expected: [(&[u8], &[u8]); 2] = [(b"user.both", b"\0binary\n\xff"), (b"user.one=two", b"\0\xff")];
        assert_eq!(pax.xattrs, expected.map(|(name, value)| (name.to_vec(), value.to_vec())));
        let bad = encode(b"LIBARCHIVE.xattr.user.a", b"?");
        assert!(Pax::parse(&bad, &Limits::default()).unwrap_err().message.contains("LIBARCHIVE"));
    }

    #[test]
    fn a_later_record_replaces_an_earlier_one_of_its_name_alone() {
        let records: Vec<u8> = [("a", "1"), ("b", "2"), ("a", "3")]
            .iter()
            .flat_map(|(name, value)| {
                encode(format!("SCHILY.xattr.user.{name}").as_bytes(), value.as_bytes())
            })
            .collect();
        let pax = Pax::parse(&records, &Limits::default()).unwrap();
        let expected: [(&[u8], &[u8]); 2] = [(b"user.b", b"2"), (b"user.a", b"3")];
        assert_eq!(pax.xattrs, expected.map(|(name, value)| (name.to_vec(), value.to_vec())));
    }

    #[test]
    fn maps_are_pairs() {
        let map = |value: &[u8]| Pax::parse(&encode(b"GNU.sparse.map", value), &Limits::default());
        assert_eq!(map(b"0,3,5,1").unwrap().sparse.segments.len(), 2);
        for wrong in [&b"0,3,5"[..], b"0", b"0,x", b"0,,", b"\xff"] {
            assert!(map(wrong).unwrap_err().message.contains("GNU.sparse.map"), "{wrong:?}");
        }
        let limits = Limits { sparse_segments: 1, ..Limits::default() };
        let error = Pax::parse(&encode(b"GNU.sparse.map", b"0,3,5,1"), &limits).unwrap_err();
        assert!(error.message.contains("sparse_segments"), "{error}");
        for wrong in [&b"5 =x\n"[..], b"6 path\n", b"7 path=a\n", b"xx path=a\n"] {
            assert!(
                Pax::parse(wrong, &limits).unwrap_err().message.contains("malformed PAX record"),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn xattrs_are_bounded() {
        let limits = Limits { xattr_bytes: 10, ..Limits::default() };
        let error = Pax::parse(&encode(b"SCHILY.xattr.user.long", b"value"), &limits).unwrap_err();
        assert_eq!((error.reason, error.transient), ("LimitExceeded", false));
        assert!(error.message.contains("xattr_bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::parse(&bytes, &Limits::default());
            let _ = super::super::header::number(&bytes);
            let _ = time(&bytes);
        }

        #[test]
        fn records_round_trip(path in prop::collection::vec(1u8.., 1..300), value in prop::collection::vec(any::<u8>(), 1..300)) {
            let bytes = [encode(b"path", &path), encode(b"SCHILY.xattr.user.x", &value)].concat();
            let pax = Pax::parse(&bytes, &Limits::default()).unwrap();
            prop_assert_eq!(pax.path, Some(path));
            prop_assert_eq!(pax.xattrs, vec![(b"user.x".to_vec(), value)]);
        }
    }
}
