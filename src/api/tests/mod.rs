//! Pure parts, by value.

mod why;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::age::human;
use super::channel::{Frame, TerminalSize};
use super::request::{Form, Include, Params};
use super::selector::{FieldSelector, LabelSelector};
use super::types::Status;

#[test]
fn ages_are_as_precise_as_kubectls() {
    for (seconds, text) in [
        (0, "0s"),
        (8, "8s"),
        (119, "119s"),
        (120, "2m"),
        (252, "4m12s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_100, "3h5m"),
        (28_800, "8h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (691_200, "8d"),
        (63_072_000, "2y"),
        (315_360_000, "10y"),
    ] {
        assert_eq!(human(seconds), text, "{seconds}");
    }
}

fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    LabelSelector::parse(selector).unwrap().matches(&labels)
}

#[test]
fn label_selectors_mean_what_they_mean_in_kubernetes() {
    let web = [("tier", "front"), ("app.dev/name", "web")];
    for yes in ["", "tier=front", "tier==front", "tier!=back", "missing!=x", "tier", "!missing"] {
        assert!(matches(yes, &web), "{yes}");
    }
    for yes in ["tier in (back, front),app.dev/name=web", "tier notin (back)", "missing notin (a)"] {
        assert!(matches(yes, &web), "{yes}");
    }
    for no in ["tier=back", "tier!=front", "missing", "!tier", "missing in (a)", "tier notin (front)"] {
        assert!(!matches(no, &web), "{no}");
    }
    for bad in [",", "a,", "a in b", "a in (b", "a near (b)", "a b", "=x", "a=b=c", "a=(b)"] {
        assert!(LabelSelector::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn field_selectors_name_the_fields_they_know() {
    let known = ["metadata.name"];
    let selector = FieldSelector::parse("metadata.name!=web", &known).unwrap();
    assert!(selector.matches(|_| "db") && !selector.matches(|_| "web"));
    let error = FieldSelector::parse("spec.cpus=1", &known).unwrap_err().to_string();
    assert!(error.contains("use metadata.name"), "{error}");
}

#[test]
fn the_first_acceptable_form_is_sent() {
    let form = |accept: &'static str| {
        let headers = [(axum::http::header::ACCEPT, accept.parse().unwrap())].into_iter().collect();
        Form::negotiate(&headers, &Params::default()).ok()
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    assert_eq!(form(table), Some(Form::Table(Include::Metadata)));
    assert_eq!(
        form("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json"),
        Some(Form::Objects)
    );
    assert_eq!(form("application/json, application/json;as=Table;v=v1;g=meta.k8s.io"), Some(Form::Objects));
    assert_eq!(form("*/*"), Some(Form::Objects));
    assert_eq!(form("application/vnd.kubernetes.protobuf, application/json"), Some(Form::Objects));
    assert_eq!(form("text/html"), None);
}

#[test]
fn frames_are_those_of_kubernetes() {
    let size = Frame::Resize(TerminalSize { width: 80, height: 24 });
    assert_eq!(&size.encode()[..], b"\x04{\"Width\":80,\"Height\":24}");
    assert_eq!(&Frame::StdinClosed.encode()[..], [255, 0]);
    for frame in [
        size,
        Frame::StdinClosed,
        Frame::Stdin("in".into()),
        Frame::Stdout("".into()),
        Frame::Stderr("err".into()),
        Frame::Ended(Box::new(Status::of_exit(3))),
    ] {
        assert_eq!(Frame::decode(frame.encode()), Ok(Some(frame)));
    }
    assert!(Frame::decode(b"\x09x".as_slice().into()).is_err());
    assert!(Frame::decode(b"\x04{}".as_slice().into()).is_err());
}

proptest! {
    #[test]
    fn no_selector_or_frame_panics(text in "\\PC*", bytes: Vec<u8>) {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::parse(&text, &["a"]);
        let _ = Frame::decode(bytes.into());
    }
}
