use jiff::Timestamp;
use serde_json::json;

use super::plan::{Failure, Observed, Step, plan, status};
use crate::image::{Progress, Source};
use crate::object::{DiskStatus, Quantity};
use crate::reconcile::pulls::PullState;
use crate::store::{ImageRecord, Origin, PinnedImage};

const REFERENCE: &str = "127.0.0.1:5055/debian:12";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pin(reference: &str) -> PinnedImage {
    let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    PinnedImage { source: Source::Oci(reference.to_owned()), digest, kernel: None }
}

fn record(image: Option<PinnedImage>) -> ImageRecord {
    let object = serde_json::from_value(json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "debian", "generation": 2},
        "spec": {"source": {"oci": {"reference": REFERENCE}}}
    }))
    .unwrap();
    let origin = Origin { source: "test".to_owned(), path: "image.yaml".into(), line: 1 };
    ImageRecord { object, origin, problem: None, image }
}

fn seen(pull: Option<PullState>) -> Observed {
    Observed { disk: None, kernel_disk: false, kernel: None, pull, failure: None, closed_until: None }
}

#[test]
fn an_image_is_resolved_pulled_and_ready() {
    let pinned = record(Some(pin(REFERENCE)));
    assert_eq!(plan(&record(None), &seen(None)).step, Step::Resolve(Source::Oci(REFERENCE.to_owned())));
    assert_eq!(
        plan(&record(Some(pin("other:1"))), &seen(None)).step,
        Step::Resolve(Source::Oci(REFERENCE.to_owned()))
    );
    let PinnedImage { source, digest, .. } = pin(REFERENCE);
    assert_eq!(plan(&pinned, &seen(None)).step, Step::Pull { source, digest });
    assert_eq!(plan(&pinned, &seen(Some(PullState::Queued))).step, Step::Wait(None));
    let disk = Some(DiskStatus { path: "/d".to_owned(), size: Quantity::bytes(1) });
    assert_eq!(plan(&pinned, &Observed { disk, ..seen(None) }).phase, "Ready");
}

#[test]
fn a_failed_pull_says_why_and_when_it_is_tried_again() {
    let pinned = record(Some(pin(REFERENCE)));
    let failed = |retry| PullState::Failed {
        reason: "RegistryUnavailable",
        message: "connection refused".to_owned(),
        attempt: 2,
        retry,
    };
    let waiting = seen(Some(failed(Some(at(9)))));
    let status = status(&pinned, &waiting, &plan(&pinned, &waiting), at(5));
    let ready = &status.conditions[0];
    assert_eq!((status.phase.as_str(), status.next_retry_time), ("Backoff", Some(at(9))));
    assert_eq!(
        (ready.reason.as_str(), ready.message.as_str()),
        ("RegistryUnavailable", "connection refused (attempt 2)")
    );
    assert_eq!((ready.observed_generation, status.observed_generation), (2, 2));
    assert_eq!(plan(&pinned, &seen(Some(failed(None)))).phase, "Failed");
}

#[test]
fn progress_is_shown_while_it_is_made() {
    let pinned = record(Some(pin(REFERENCE)));
    let progress = Progress { layers: 4, layers_done: 2, bytes: 100, bytes_done: 61 };
    let pulling = seen(Some(PullState::Running(progress)));
    let status = status(&pinned, &pulling, &plan(&pinned, &pulling), at(5));
    assert_eq!(status.progress.as_deref(), Some("layer 3 of 4, 61 %"));
}

#[test]
fn a_deletion_is_not_held_up_by_a_pull() {
    let mut gone = record(Some(pin(REFERENCE)));
    gone.object.metadata.deletion_timestamp = Some(at(1));
    assert_eq!(plan(&gone, &seen(Some(PullState::Queued))).step, Step::Remove);
    let failure = Failure {
        reason: "StoreFailed".to_owned(),
        message: "full".to_owned(),
        transient: true,
        step: std::mem::discriminant(&Step::Remove),
    };
    let failed = Observed { failure: Some(failure), closed_until: Some(at(9)), ..seen(None) };
    assert_eq!(plan(&gone, &failed).step, Step::Wait(Some(at(9))));
}
