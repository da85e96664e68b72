//! What the engine takes down of itself, and that it is what happened.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use vmlet::image::Source;
use vmlet::metrics::Metrics;
use vmlet::object::ObjectKey;
use vmlet::reconcile::Retention;
use vmlet::storage::Storage;
use vmlet::testing::{ImageScript, VmScript};
use vmlet::timeline::{Outcome, Phase, Span, Subject};

use crate::SECOND;
use crate::rig::{Rig, image, image_key, vm, vm_key};

fn of(spans: &[Span], key: &ObjectKey) -> Vec<Span> {
    let subject = Subject::Object(key.clone());
    spans.iter().filter(|span| span.subject == subject).cloned().collect()
}

fn phases(spans: &[Span]) -> Vec<Phase> {
    spans.iter().map(|span| span.phase).collect()
}

fn took(spans: &[Span], phase: Phase) -> Duration {
    let span = spans.iter().find(|span| span.phase == phase).unwrap();
    span.end.unwrap().duration_since(span.start).unsigned_abs()
}

#[tokio::test(start_paused = true)]
async fn the_phases_of_a_start_follow_each_other_and_sum_up_to_the_timings() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 7 * SECOND));
    rig.script("web", VmScript { boot: 3 * SECOND, ..VmScript::default() });
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}}))).await;
    rig.ready(&vm_key("web")).await;
    let spans = of(&rig.recorder().timeline().spans, &vm_key("web"));
    let life = [
        Phase::Resolve,
        Phase::ImageWait,
        Phase::Reserve,
        Phase::Prepare,
        Phase::Boot,
        Phase::Workload,
        Phase::Ready,
    ];
    assert_eq!(phases(&spans), life, "{spans:#?}");
    for pair in spans.windows(2) {
        assert_eq!((pair[0].end, pair[0].outcome), (Some(pair[1].start), Some(Outcome::Done)), "no gap");
    }
    assert_eq!(spans.last().unwrap().end, None);
    assert!(took(&spans, Phase::ImageWait) >= 7 * SECOND && took(&spans, Phase::Boot) >= 3 * SECOND);
    let timings = rig.vm("web").object.status.timings.clone();
    let millis = |phase| Some(u64::try_from(took(&spans, phase).as_millis()).unwrap());
    assert_eq!(timings.boot_ms, millis(Phase::Boot));
    assert_eq!(timings.prepare_ms, millis(Phase::Prepare));
    assert_eq!(timings.reserve_ms, millis(Phase::Reserve));
    assert!(timings.image_ms >= millis(Phase::ImageWait) && timings.workload_ms.is_some(), "{timings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shared_pull_is_one_span_that_all_who_wait_name() {
    let rig = Rig::new();
    rig.host.script_image("r/a:1", ImageScript::new('a', 7 * SECOND));
    for name in ["one", "two"] {
        rig.declare(vm(name, json!({"image": {"oci": "r/a:1"}}))).await;
    }
    for name in ["one", "two"] {
        rig.ready(&vm_key(name)).await;
    }
    let spans = rig.recorder().timeline().spans;
    let pulls: Vec<&Span> = spans.iter().filter(|span| span.phase == Phase::Pull).collect();
    assert_eq!(pulls.len(), 1);
    let Subject::Pull { digest, .. } = &pulls[0].subject else { panic!("{pulls:?}") };
    for name in ["one", "two"] {
        let waits =
            of(&spans, &vm_key(name)).into_iter().find(|span| span.phase == Phase::ImageWait).unwrap();
        assert_eq!(waits.awaits.as_ref(), Some(digest));
        assert!(waits.start <= pulls[0].start && waits.end >= pulls[0].end, "it covers the pull");
    }
}

#[tokio::test(start_paused = true)]
async fn waits_for_permits_failures_and_ends_are_spans() {
    let mut rig = Rig::new();
    rig.kill().await;
    rig.settings.max_boots = 1;
    rig.start();
    rig.host.script_image("r/a:1", ImageScript { failures: 1, ..ImageScript::new('a', SECOND) });
    for name in ["one", "two"] {
        rig.script(name, VmScript { boot: 5 * SECOND, ..VmScript::default() });
        rig.declare(vm(name, json!({"image": {"oci": "r/a:1"}}))).await;
    }
    for name in ["one", "two"] {
        rig.ready(&vm_key(name)).await;
    }
    let spans = rig.recorder().timeline().spans;
    let longest = |phase| {
        let of_phase = spans.iter().filter(|span| span.phase == phase);
        of_phase.map(|span| span.end.unwrap().duration_since(span.start).unsigned_abs()).max().unwrap()
    };
    assert!(longest(Phase::BootWait) >= 5 * SECOND, "one waits while the other boots");
    let failed = spans.iter().find(|span| span.outcome == Some(Outcome::Failed)).unwrap();
    assert!(failed.phase == Phase::Pull && failed.detail.contains("connection reset"), "{failed:?}");
    assert!(longest(Phase::Backoff) > Duration::ZERO);
    rig.undeclare(&vm_key("one")).await;
    rig.gone(&vm_key("one")).await;
    rig.eventually(|| {
        of(&rig.recorder().timeline().spans, &vm_key("one")).iter().all(|span| span.end.is_some())
    })
    .await;
    let ended = phases(&of(&rig.recorder().timeline().spans, &vm_key("one")));
    assert_eq!(ended[ended.len() - 3..], [Phase::Ready, Phase::Stop, Phase::TearDown]);
}

#[tokio::test(start_paused = true)]
async fn the_numbers_say_what_happened() {
    let rig = Rig::with(Retention { grace: 3600 * SECOND, low: 0, high: 0 });
    rig.host.script_image("r/a:1", ImageScript { failures: 1, ..ImageScript::new('a', SECOND) });
    rig.declare(vm("web", json!({"image": {"oci": "r/a:1"}, "runPolicy": "Always"}))).await;
    rig.ready(&vm_key("web")).await;
    rig.crash("web");
    rig.until(&vm_key("web"), |record| record.is_some_and(|record| !crate::is_ready(record))).await;
    rig.ready(&vm_key("web")).await;
    for (digit, goes) in [('b', true), ('c', false)] {
        let reference = format!("r/{digit}:1");
        rig.host.script_image(&reference, ImageScript::new(digit, SECOND));
        rig.engine().pull(Source::Oci(reference)).collect::<Vec<_>>().await;
        if goes {
            let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
            rig.engine().remove(digest).await.unwrap();
        }
    }
    rig.host.script_image("r/missing:1", ImageScript { digest: None, ..ImageScript::new('f', SECOND) });
    rig.declare(image("missing", "r/missing:1")).await;
    rig.until(&image_key("missing"), |record| {
        record.is_some_and(|record| crate::reason(record) == "NotFound")
    })
    .await;
    let page = Metrics::new([Box::new(rig.engine()) as _]).text();
    for line in [
        "vmlet_objects{kind=\"vm\",phase=\"Running\",ready=\"true\"} 1.0",
        "vmlet_phase_subjects{phase=\"ready\"} 1.0",
        "vmlet_phase_seconds_count{phase=\"boot\"} 2",
        "vmlet_pulls_total{outcome=\"failed\"} 1.0",
        "vmlet_pulls_total{outcome=\"done\"} 3.0",
        "vmlet_pulled_bytes_total 1200.0",
        "vmlet_vm_restarts_total 1.0",
        "vmlet_reconcile_failures_total{kind=\"pull\",reason=\"RegistryUnavailable\"} 1.0",
        "vmlet_reconcile_failures_total{kind=\"vm\",reason=\"WorkloadExited\"} 1.0",
        "vmlet_reconcile_failures_total{kind=\"image\",reason=\"NotFound\"} 1.0",
        "vmlet_reconcile_steps_total{kind=\"vm\",step=\"boot\"} 2.0",
        "vmlet_reconcile_steps_total{kind=\"image\",step=\"resolve\"} 1.0",
        "vmlet_collections_total{reason=\"requested\"} 1.0",
        "vmlet_disks{state=\"used\"} 1.0",
        "vmlet_disks{state=\"unused\"} 1.0",
        "vmlet_permits_free{permit=\"pull\"} 4.0",
    ] {
        assert!(page.lines().any(|other| other == line), "{line} is not in:\n{page}");
    }
    for guard in ["store", "pulls", "agents", "collector", "timeline"] {
        let count = format!("vmlet_guard_held_seconds_count{{guard=\"{guard}\"}} ");
        let line = page.lines().find(|line| line.starts_with(&count)).unwrap_or_default();
        assert!(line != format!("{count}0") && !line.is_empty(), "{guard} was held:\n{page}");
    }
}
