//! `vmlet image` against scripted disk space.

use insta::assert_snapshot;
use serde_json::Value;

use super::{Daemon, outcome, vmlet};
use crate::storage::digest;

#[test]
fn helps() {
    for verb in ["ls", "pull", "inspect", "rm", "prune", "df"] {
        let (code, stdout, _) = outcome(&vmlet(&["image", verb, "-h"]).output().unwrap());
        assert_eq!(code, 0);
        assert_snapshot!(format!("image_help_{verb}"), stdout);
    }
}

#[test]
fn base_disks_are_listed() {
    let daemon = Daemon::empty();
    assert_snapshot!("image_ls", daemon.text(&["image", "ls"]));
    assert_snapshot!("image_ls_wide", daemon.text(&["image", "ls", "-o", "wide"]));
    assert_eq!(daemon.text(&["image", "ls", "-o", "name"]), format!("{}\n{}\n", digest('a'), digest('b')));
    let list: Value = serde_json::from_str(&daemon.text(&["image", "ls", "-o", "json"])).unwrap();
    assert_eq!(list[0]["usedBy"][1], "vm/web");
    assert!(daemon.text(&["image", "ls", "-o", "yaml"]).contains("unusedSince: 2025-12-31T23:56:00Z"));
}

#[test]
fn one_is_inspected_by_any_of_its_names() {
    let daemon = Daemon::empty();
    assert_snapshot!("image_inspect", daemon.text(&["image", "inspect", "debian:12"]));
    for name in ["docker.io/library/debian:12", "aaaaaa", "sha256:aaaaaaaa"] {
        let disk: Value = serde_json::from_str(&daemon.text(&["image", "inspect", name])).unwrap();
        assert_eq!(disk["sources"][0], "debian:12", "{name}");
    }
    let (code, _, stderr) = daemon.run(&["image", "inspect", "nope:1"]);
    assert_eq!(code, 1);
    assert_snapshot!("image_inspect_missing", stderr);
}

#[test]
fn what_is_in_use_is_not_removed() {
    let daemon = Daemon::empty();
    let (code, stdout, stderr) = daemon.run(&["image", "rm", "debian:12", "alpine:3", "nope:1"]);
    assert_eq!(code, 1);
    assert_snapshot!("image_rm", format!("{stdout}{stderr}"));
    let gone = daemon.run(&["image", "rm", "alpine:3", "--ignore-not-found"]);
    assert_eq!(gone, (0, String::new(), String::new()));
}

#[test]
fn a_prune_says_what_it_gave_back() {
    let daemon = Daemon::empty();
    assert_snapshot!("image_prune_dry_run", daemon.text(&["image", "prune", "--dry-run", "--blobs"]));
    // Not on a terminal: nobody is asked.
    assert_snapshot!("image_prune", daemon.text(&["image", "prune"]));
    assert_eq!(daemon.text(&["image", "prune", "-f"]), "0 B reclaimed\n");
}

#[test]
fn disk_space_by_kind() {
    let daemon = Daemon::empty();
    assert_snapshot!("image_df", daemon.text(&["image", "df"]));
    let df: Value = serde_json::from_str(&daemon.text(&["image", "df", "-o", "json"])).unwrap();
    assert_eq!(df["uses"][0]["reclaimable"], 7 << 20);
}

#[test]
fn a_pull_tells_of_each_layer_and_then_what_came_of_it() {
    let daemon = Daemon::empty();
    let (code, stdout, stderr) = daemon.run(&["image", "pull", "debian:13"]);
    assert_eq!(code, 0);
    assert_snapshot!("image_pull", format!("{stderr}{stdout}"));
    assert_eq!(daemon.text(&["image", "pull", "-q", "debian:13"]), format!("{}\n", digest('c')));
    let there = daemon.run(&["image", "pull", "alpine:3"]).1;
    assert!(there.contains("it was there already"), "{there}");
    let (code, stdout, stderr) = daemon.run(&["image", "pull", "-q", "missing:1", "debian:13"]);
    assert_eq!((code, stdout), (1, format!("{}\n", digest('c'))), "one failure hides no other");
    assert_snapshot!("image_pull_missing", stderr);
    let (code, _, stderr) = daemon.run(&["image", "pull", "Not A Reference"]);
    assert_eq!(code, 2, "{stderr}");
}
