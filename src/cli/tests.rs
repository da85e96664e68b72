//! Pure parts, by value.

use clap::CommandFactory;
use serde_json::json;

use super::Cli;
use super::client::{escape, with_query};
use super::live::{Sign, doing};
use super::target::{Targets, vm_name};
use super::text::printable;
use crate::object::Kind;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

fn targets(words: &[&str]) -> Result<Targets, u8> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    Targets::parse(&words).map_err(|error| error.code)
}

#[test]
fn targets_are_written_as_for_kubectl() {
    let named = |pairs: &[(Kind, &str)]| {
        Ok(Targets::Named(pairs.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect()))
    };
    assert_eq!(targets(&["vms"]), Ok(Targets::All(vec![Kind::Vm])));
    assert_eq!(targets(&["all"]), Ok(Targets::All(vec![Kind::Vm, Kind::Image])));
    assert_eq!(targets(&["VM", "a", "b"]), named(&[(Kind::Vm, "a"), (Kind::Vm, "b")]));
    assert_eq!(targets(&["vm/a", "image/b"]), named(&[(Kind::Vm, "a"), (Kind::Image, "b")]));
    for wrong in [&["pods"][..], &[], &["vm/a", "b"], &["vm/"], &["pod/a"]] {
        assert_eq!(targets(wrong), Err(2), "{wrong:?}");
    }
    assert_eq!(vm_name("vm/web").ok(), Some("web"));
    assert!(vm_name("image/web").is_err());
}

#[test]
fn queries_are_escaped() {
    assert_eq!(escape("a in (b,c)&é"), "a%20in%20%28b%2Cc%29%26%C3%A9");
    assert_eq!(with_query("/a", [("x", "1"), ("y", "=")]), "/a?x=1&y=%3D");
}

#[test]
fn what_others_wrote_cannot_drive_the_terminal() {
    assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb c");
}

#[test]
fn progress_is_a_bar_and_the_rest_a_spinner() {
    let pulling = json!({"status": {"phase": "Pulling", "progress": "layer 3 of 4, 61 %"}});
    assert_eq!(doing(&pulling), ("Pulling: layer 3 of 4, 61 %".to_owned(), Sign::Percent(61)));
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(doing(&ready), ("Running".to_owned(), Sign::Still));
    assert_eq!(doing(&json!({})), ("Pending".to_owned(), Sign::Busy));
    let failed = json!({"status": {"phase": "Failed", "conditions": [
        {"type": "Ready", "status": "False", "message": "no such image"}]}});
    assert_eq!(doing(&failed), ("Failed: no such image".to_owned(), Sign::Still));
}
