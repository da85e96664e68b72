use super::df::uses;
use super::find::{find, missing};
use super::ls::rows;
use super::pull::{bar, line};
use crate::cli::live::Sign;
use crate::object::PullProgress;
use crate::storage::{DiskReport, PullUpdate, Report};
use serde_json::json;

fn disk(digits: &str, sources: &[&str], used_by: &[&str]) -> DiskReport {
    let digest = format!("sha256:{digits:0<64}");
    serde_json::from_value(json!({
        "digest": digest, "state": "ready", "path": "/d", "size": 1 << 30, "allocated": 85 << 20,
        "sources": sources, "usedBy": used_by,
    }))
    .unwrap()
}

fn report(disks: Vec<DiskReport>) -> Report {
    serde_json::from_value(json!({
        "now": "2026-01-01T00:00:00Z", "disks": disks, "pulls": [],
        "blobs": [{"digest": format!("sha256:{:064}", 1), "size": 3, "lastUsed": "2026-01-01T00:00:00Z", "partial": true}],
        "vmDisks": [{"vm": "vm/web", "running": true, "allocated": 10}, {"vm": "vm/b", "running": false, "allocated": 5}],
        "staging": {"count": 1, "allocated": 7}, "filesystem": null,
        "retention": {"graceSeconds": 600, "diskLow": 10, "diskHigh": 15},
    }))
    .unwrap()
}

#[test]
fn a_word_means_a_source_or_a_digest() {
    let report = report(vec![
        disk("abcdef1", &["debian:12", "/srv/disk"], &[]),
        disk("abcdef2", &["docker.io/library/alpine:3"], &[]),
        disk("123456", &["abcdef"], &[]),
    ]);
    let found =
        |word: &str| find(&report, word).unwrap().map(|disk| disk.digest.to_string()[7..14].to_owned());
    for (word, digits) in [
        ("debian:12", Some("abcdef1")),
        ("docker.io/library/debian:12", Some("abcdef1")),
        ("alpine:3", Some("abcdef2")),
        ("/srv/disk", Some("abcdef1")),
        ("abcdef1", Some("abcdef1")),
        ("sha256:abcdef2", Some("abcdef2")),
        ("abcdef", Some("1234560")),
        ("123456", Some("1234560")),
        ("12345", None),
        ("debian:13", None),
    ] {
        assert_eq!(found(word).as_deref(), digits, "{word}");
    }
    let ambiguous = find(&report, "sha256:abcdef").unwrap_err();
    assert!(
        ambiguous.message.contains("sha256:abcdef10") && ambiguous.message.contains(" or "),
        "{ambiguous}"
    );
    assert!(missing("sha256:12").hint.unwrap().contains("at least 6"));
}

#[test]
fn every_name_of_a_disk_has_a_row() {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let used = disk("ab", &["a:1", "b:1"], &["image/a", "vm/a", "vm/b", "vm/c", "vm/d"]);
    let shown = rows(&used, false, now);
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[1], ["b:1", "ab0000000000", "85 MiB", "image/a,vm/a,vm/b,+2", "-"]);
    let unused = DiskReport { unused_since: "2025-12-31T23:50:00Z".parse().ok(), ..disk("ab", &[], &[]) };
    assert_eq!(rows(&unused, false, now), [["<none>", "ab0000000000", "85 MiB", "-", "10m"]]);
}

#[test]
fn what_nothing_refers_to_is_reclaimable() {
    let uses = json!(uses(&report(vec![disk("a", &[], &[]), disk("b", &[], &["vm/web"])])));
    assert_eq!(
        uses,
        json!([
            {"type": "Base disks", "count": 2, "active": 1, "size": 170 << 20, "reclaimable": 85 << 20},
            {"type": "VM disks", "count": 2, "active": 1, "size": 15, "reclaimable": 0},
            {"type": "Kept layers", "count": 1, "active": 0, "size": 3, "reclaimable": 3},
            {"type": "Staging", "count": 1, "active": 1, "size": 7, "reclaimable": 0},
        ])
    );
}

#[test]
fn a_pull_has_a_rate_and_an_end_in_sight() {
    let digest: crate::image::Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let mut progress = PullProgress {
        layers: 4,
        layers_done: 2,
        bytes: 1000 << 20,
        bytes_done: 610 << 20,
        bytes_per_second: Some(34 << 20),
    };
    let pulling =
        |progress: &PullProgress| PullUpdate::Pulling { digest: digest.clone(), progress: progress.clone() };
    assert_eq!(
        bar(&pulling(&progress)),
        ("layer 3 of 4, 61 %, 34 MiB/s, 12s left".to_owned(), Sign::Percent(61))
    );
    assert_eq!(line(&pulling(&progress)), "layer 3 of 4, 1.0 GiB in all");
    progress.bytes_per_second = Some(0);
    assert_eq!(bar(&pulling(&progress)).0, "layer 3 of 4, 61 %, 0 B/s");
    assert_eq!(bar(&PullUpdate::Resolving), ("asking for its digest".to_owned(), Sign::Busy));
}
