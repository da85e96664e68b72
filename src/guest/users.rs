//! Whom a process runs as: `user`, `user:group` or numbers, looked up in the image's own files.
//!
//! The rules are those of the OCI image-spec (config.md, `User`): a name must exist, a number need
//! not; without a group the user's primary and supplementary groups apply, with one only that.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::failure::Failure;

/// A longer passwd or group file is cut here.
const FILE_LIMIT: u64 = 4 << 20;

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Looks `user` up in `/etc/passwd` and `/etc/group`; root when absent or empty.
pub(crate) fn look_up(user: Option<&str>) -> Result<Identity, Failure> {
    let passwd = read("/etc/passwd".as_ref());
    let group = read("/etc/group".as_ref());
    resolve(user.filter(|user| !user.is_empty()).unwrap_or("0"), &passwd, &group)
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What could be read is what there is to look up in.
        let _ = file.take(FILE_LIMIT).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let number: Option<u32> = user.parse().ok();
    // name:password:uid:gid:gecos:home:shell. A name wins over a number, as in other runtimes.
    let entries = || rows(passwd, 6);
    let entry = entries()
        .find(|entry| entry[0] == user)
        .or_else(|| entries().find(|entry| number.is_some() && entry[2].parse().ok() == number));
    let (name, uid, primary, home) = match &entry {
        Some(entry) => {
            let parse = |text: &str| {
                text.parse().map_err(|_| Failure::new(format!("/etc/passwd has a broken entry for {user:?}")))
            };
            (Some(entry[0]), parse(entry[2])?, parse(entry[3])?, entry[5])
        }
        None => match number {
            Some(uid) => (None, uid, 0, ""),
            None => return Err(Failure::new(format!("the image has no user {user:?} in /etc/passwd"))),
        },
    };
    let home = if home.is_empty() { if uid == 0 { "/root" } else { "/" } } else { home }.to_owned();
    // name:password:gid:member,member
    let groups = || rows(group, 3);
    if let Some(wanted) = wanted_group {
        let by_name = groups().find(|row| row[0] == wanted).and_then(|row| row[2].parse().ok());
        let gid = by_name.or_else(|| wanted.parse().ok());
        let gid =
            gid.ok_or_else(|| Failure::new(format!("the image has no group {wanted:?} in /etc/group")))?;
        return Ok(Identity { uid, gid, groups: vec![gid], home });
    }
    let member_of = |row: &Vec<&str>| {
        let members = row.get(3).copied().unwrap_or_default();
        name.is_some_and(|name| members.split(',').any(|member| member == name))
    };
    let mut all: Vec<u32> = groups().filter(member_of).filter_map(|row| row[2].parse().ok()).collect();
    all.insert(0, primary);
    Ok(Identity { uid, gid: primary, groups: all, home })
}

/// The lines of a colon-separated file that have at least `columns` columns.
fn rows(text: &str, columns: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(move |row| row.len() >= columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # broken line\n\
        www:x:33:33:www:/var/www:/bin/false\n\
        bad:x:many:33:::\n\
        1000:x:55:56::/odd:/bin/sh\n\
        app:x:1001:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nssl:x:101:www,app\naudio:x:29:app,other\nshort:x:7\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(spec, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn names_and_numbers_find_their_entry() {
        assert_eq!(ids("0"), (0, 0, vec![0], "/root".into()));
        assert_eq!(ids("www"), (33, 33, vec![33, 101], "/var/www".into()));
        assert_eq!(ids("33"), ids("www"));
        assert_eq!(ids("app"), (1001, 1001, vec![1001, 101, 29], "/home/app".into()));
    }

    #[test]
    fn a_number_need_not_exist_and_a_name_may_look_like_one() {
        assert_eq!(ids("4711"), (4711, 0, vec![0], "/".into()));
        assert_eq!(ids("1000"), (55, 56, vec![56], "/odd".into()));
    }

    #[test]
    fn a_group_replaces_all_groups() {
        assert_eq!(ids("app:ssl"), (1001, 101, vec![101], "/home/app".into()));
        assert_eq!(ids("4711:4712"), (4711, 4712, vec![4712], "/".into()));
        assert_eq!(ids("app:"), ids("app"));
        assert_eq!(ids("app:short").1, 7);
    }

    #[test]
    fn unknown_names_are_errors_that_say_so() {
        let message = |spec| resolve(spec, PASSWD, GROUP).unwrap_err().message;
        assert_eq!(message("nobody"), "the image has no user \"nobody\" in /etc/passwd");
        assert_eq!(message("www:wheel"), "the image has no group \"wheel\" in /etc/group");
        assert_eq!(message("bad"), "/etc/passwd has a broken entry for \"bad\"");
        assert_eq!(message(":ssl"), "the image has no user \"\" in /etc/passwd");
        assert_eq!(resolve("0", "", "").unwrap().home, "/root");
    }
}
