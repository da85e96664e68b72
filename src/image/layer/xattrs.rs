//! Extended attributes: which of those that a layer names a file on the disk can have.

use crate::image::ImageError;

/// Name and value.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// What a file is, as far as attributes depend on it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bearer {
    File,
    Directory,
    Symlink,
    Special,
}

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Kinds of entries of an ACL (include/uapi/linux/posix_acl.h).
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The attributes that ext4 can hold. Overlayfs' own are dropped: the disk becomes the lower side
/// of an overlay, where they would redirect and hide files at an image's will.
pub(super) fn is_kept(name: &[u8]) -> bool {
    let has = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    let overlay = has(b"trusted.overlay.") || has(b"user.overlay.");
    let namespace = has(b"user.") || has(b"trusted.") || has(b"security.");
    let acl = name == ACCESS || name == DEFAULT;
    (namespace && !overlay || acl) && !name.contains(&0)
}

/// Keeps what Linux would let such a file have, as if the attributes had been set and the permissions
/// after them: no `user.` attributes but on files and directories (xattr(7)), no ACLs on symlinks, no
/// default ACLs but on directories, and no ACL that says no more than the permissions do.
pub(super) fn fit(xattrs: Vec<Xattr>, bearer: Bearer, mode: u16) -> Result<Vec<Xattr>, ImageError> {
    let mut fitting = Vec::with_capacity(xattrs.len());
    for (name, value) in xattrs {
        let value = match name.as_slice() {
            ACCESS if bearer == Bearer::Symlink => None,
            ACCESS => access_acl(value, mode)?,
            DEFAULT if bearer != Bearer::Directory => None,
            DEFAULT => Acl::parse(&value)?.map(|_| value),
            _ if name.starts_with(b"user.") => {
                matches!(bearer, Bearer::File | Bearer::Directory).then_some(value)
            }
            _ => Some(value),
        };
        fitting.extend(value.map(|value| (name, value)));
    }
    Ok(fitting)
}

/// With the permissions of `mode`, as chmod(2) would put them in. `None` if they say it all.
fn access_acl(mut value: Vec<u8>, mode: u16) -> Result<Option<Vec<u8>>, ImageError> {
    let Some(acl) = Acl::parse(&value)? else { return Ok(None) };
    if !acl.masked {
        return Ok(None);
    }
    for entry in value[4..].as_chunks_mut::<8>().0 {
        let bits = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER_OBJ => mode >> 6,
            MASK => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2..4].copy_from_slice(&(bits & 7).to_le_bytes());
    }
    Ok(Some(value))
}

/// An ACL in the words of star and libarchive, `user::rw-,user:lisa:r--:502,…`, in the form of the system
/// calls. `None` if it names somebody without a number - whom, only the machine knows where it was packed - or
/// is none that Linux takes: most unpackers do not read these words at all.
pub(super) fn acl_of_text(text: &[u8]) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for entry in std::str::from_utf8(text).ok()?.split([',', '\n']).filter(|entry| !entry.is_empty()) {
        let mut fields = entry.trim().split(':');
        let (kind, name, permissions) = (fields.next()?, fields.next()?, fields.next()?);
        let tag = match (kind, name.is_empty()) {
            ("user" | "u", true) => USER_OBJ,
            ("user" | "u", false) => USER,
            ("group" | "g", true) => GROUP_OBJ,
            ("group" | "g", false) => GROUP,
            ("mask" | "m", true) => MASK,
            ("other" | "o", true) => OTHER,
            _ => return None,
        };
        let id = if name.is_empty() { u32::MAX } else { fields.next().unwrap_or(name).parse().ok()? };
        let bits = permissions.bytes().zip(*b"rwx").zip([4, 2, 1]).filter(|((has, letter), _)| has == letter);
        entries.push((tag, id, bits.map(|(_, bit)| bit).sum::<u16>()));
    }
    entries.sort_unstable();
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Acl::parse(&value).is_ok().then_some(value)
}

/// The permissions that files with this ACL show, as setting it would change them.
pub(super) fn mode_of_acl(value: &[u8], mode: u16) -> Result<u16, ImageError> {
    let Some(acl) = Acl::parse(value)? else { return Ok(mode) };
    let mut mode = mode & !0o777;
    for entry in value[4..].as_chunks::<8>().0 {
        let [tag, permissions] = [0, 2].map(|at| u16::from_le_bytes([entry[at], entry[at + 1]]));
        mode |= match tag {
            USER_OBJ => permissions << 6,
            MASK => permissions << 3,
            GROUP_OBJ if !acl.masked => permissions << 3,
            OTHER => permissions,
            _ => 0,
        };
    }
    Ok(mode)
}

/// What a checked ACL is like.
struct Acl {
    /// It has a mask, as all have that say more than nine permission bits can.
    masked: bool,
}

impl Acl {
    /// Checks an ACL in the form of the system calls (include/uapi/linux/posix_acl_xattr.h) by the
    /// kernel's rules (posix_acl_valid() in fs/posix_acl.c). `None` for one without entries.
    fn parse(value: &[u8]) -> Result<Option<Self>, ImageError> {
        let bad = || ImageError::invalid("a POSIX ACL is malformed");
        let entries = value.strip_prefix(&2u32.to_le_bytes()).ok_or_else(bad)?;
        let (entries, []) = entries.as_chunks::<8>() else { return Err(bad()) };
        if entries.is_empty() {
            return Ok(None);
        }
        let (mut previous, mut named, mut masked) = (0, false, false);
        for entry in entries {
            let [tag, permissions] = [0, 2].map(|at| u16::from_le_bytes([entry[at], entry[at + 1]]));
            // Kinds ascend; only named users and groups may come again. Each of the other kinds follows
            // an owner, and an owning group stands before groups, mask and others.
            let in_order = matches!(
                (previous, tag),
                (0, USER_OBJ)
                    | (USER_OBJ | USER, USER | GROUP_OBJ)
                    | (GROUP_OBJ | GROUP, GROUP | MASK | OTHER)
                    | (MASK, OTHER)
            );
            let is_named = matches!(tag, USER | GROUP);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            if !in_order || permissions > 7 || (is_named && id == u32::MAX) {
                return Err(bad());
            }
            named |= is_named;
            masked |= tag == MASK;
            previous = tag;
        }
        if previous != OTHER || (named && !masked) {
            return Err(bad());
        }
        Ok(Some(Acl { masked }))
    }
}

/// The name in a `LIBARCHIVE.xattr` key: bytes that PAX keys should not have are `%` and two digits.
pub(super) fn decode_name(text: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            name.extend(hex::decode(digits).ok()?);
            rest = after;
        } else {
            name.push(*first);
            rest = after;
        }
    }
    Some(name)
}

/// A value in a `LIBARCHIVE.xattr` record: base64, the padding left out or not.
pub(super) fn decode_value(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let mut value = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for byte in &text[..text.len() - padding] {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            value.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // Six bits alone are no byte.
    (count < 6).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const ANY: u32 = u32::MAX;

    fn kept(name: &[u8], value: Vec<u8>, bearer: Bearer, mode: u16) -> Option<Vec<u8>> {
        let mut fitting = fit(vec![(name.to_vec(), value)], bearer, mode).unwrap();
        fitting.pop().map(|(_, value)| value)
    }

    #[test]
    fn acls_follow_the_permissions() {
        let full = acl(&[(1, 0, ANY), (2, 7, 1000), (4, 4, ANY), (16, 0, ANY), (32, 7, ANY)]);
        let changed = acl(&[(1, 7, ANY), (2, 7, 1000), (4, 4, ANY), (16, 5, ANY), (32, 1, ANY)]);
        assert_eq!(kept(ACCESS, full.clone(), Bearer::File, 0o751), Some(changed));
        assert_eq!(kept(DEFAULT, full.clone(), Bearer::Directory, 0o751), Some(full.clone()));
        let minimal = acl(&[(1, 7, ANY), (4, 4, ANY), (32, 4, ANY)]);
        assert_eq!(kept(ACCESS, minimal.clone(), Bearer::File, 0o744), None);
        assert_eq!(kept(DEFAULT, minimal.clone(), Bearer::Directory, 0o744), Some(minimal));
        assert_eq!(kept(ACCESS, acl(&[]), Bearer::File, 0o744), None);
        for bearer in [Bearer::File, Bearer::Symlink, Bearer::Special] {
            assert_eq!(kept(DEFAULT, full.clone(), bearer, 0o751), None);
        }
        assert_eq!(kept(ACCESS, full, Bearer::Symlink, 0o777), None);
    }

    #[test]
    fn acls_have_words() {
        let text = b"user::rw-,,group::r--\nother::---,user:lisa:rwx:502,mask::r-x,user:0:--x,";
        let value = acl_of_text(text).unwrap();
        let expected = [(1, 6, ANY), (2, 1, 0), (2, 7, 502), (4, 4, ANY), (16, 5, ANY), (32, 0, ANY)];
        assert_eq!(value, acl(&expected));
        assert_eq!(mode_of_acl(&value, 0o4777).unwrap(), 0o4650);
        assert_eq!(mode_of_acl(&acl_of_text(b"u::rwx,g::r-x,o::r--").unwrap(), 0).unwrap(), 0o754);
        assert_eq!((acl_of_text(b"user:lisa:rwx"), acl_of_text(b"nonsense")), (None, None));
        assert_eq!(acl_of_text(b"u::rwx,g::r-x,o::r--,user:lisa:rwx:502"), None, "a mask is missing");
    }

    #[test]
    fn acls_that_linux_refuses_are_refused() {
        let wrong = [
            acl(&[(4, 4, ANY), (1, 7, ANY), (32, 4, ANY)]),
            acl(&[(1, 7, ANY), (4, 4, ANY)]),
            acl(&[(1, 7, ANY), (2, 7, 5), (4, 4, ANY), (32, 4, ANY)]),
            acl(&[(1, 8, ANY), (4, 4, ANY), (32, 4, ANY)]),
            acl(&[(1, 7, ANY), (2, 7, ANY), (4, 4, ANY), (16, 7, ANY), (32, 4, ANY)]),
            acl(&[(1, 7, ANY), (1, 7, ANY), (4, 4, ANY), (32, 4, ANY)]),
            acl(&[(3, 7, ANY)]),
            [acl(&[(1, 7, ANY), (4, 4, ANY), (32, 4, ANY)]), vec![0]].concat(),
            vec![1, 0, 0, 0],
            vec![],
        ];
        for value in wrong {
            let error = fit(vec![(ACCESS.to_vec(), value.clone())], Bearer::File, 0o644);
            assert_eq!(error.unwrap_err().reason, "InvalidImage", "{value:?}");
        }
    }

    #[test]
    fn only_files_and_directories_have_attributes_of_users() {
        let has = |name: &[u8], bearer| kept(name, b"v".to_vec(), bearer, 0o644).is_some();
        assert!(has(b"user.a", Bearer::File) && has(b"user.a", Bearer::Directory));
        assert!(!has(b"user.a", Bearer::Symlink) && !has(b"user.a", Bearer::Special));
        assert!(has(b"trusted.a", Bearer::Symlink) && has(b"security.a", Bearer::Special));
    }

    #[test]
    fn names_have_no_nul() {
        assert!(is_kept(b"user.a") && !is_kept(b"user.a\0b") && !is_kept(b"user."));
    }

    #[test]
    fn libarchive_spells_names_and_values() {
        assert_eq!(decode_name(b"user.a%3Db%20").unwrap(), b"user.a=b ");
        assert_eq!((decode_name(b"user.%3"), decode_name(b"user.%zz")), (None, None));
        for text in [&b"AAEC/v8"[..], b"AAEC/v8="] {
            assert_eq!(decode_value(text).unwrap(), [0, 1, 2, 254, 255]);
        }
        assert_eq!(decode_value(b"").unwrap(), b"");
        assert_eq!((decode_value(b"A"), decode_value(b"A-BC"), decode_value(b"A=BC")), (None, None, None));
    }
}
