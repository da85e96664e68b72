use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn spec(value: Value) -> VmSpec {
    serde_json::from_value(value).unwrap()
}

#[test]
fn every_field_says_what_an_edit_does() {
    // The look-up panics if a field of the spec declares nothing.
    let effects = |kind, paths: &[&str]| -> Vec<Option<Effect>> {
        paths.iter().map(|path| effect_of(kind, path)).collect()
    };
    use Effect::{Immutable, Live, Recreate, Restart};
    assert_eq!(
        effects(
            Kind::Vm,
            &["spec.memory", "spec.rootDisk.size", "spec.network.ports[].host", "spec.env[PATH].value"]
        ),
        [Some(Restart), Some(Recreate), Some(Restart), Some(Restart)]
    );
    assert_eq!(
        effects(Kind::Image, &["spec.source.oci.reference", "metadata.labels.app.dev/name", "metadata.name"]),
        [Some(Live), Some(Live), Some(Immutable)]
    );
    assert_eq!(effects(Kind::Vm, &["metadata.uid", "status.pid", ""]), [None, None, None]);
}

#[test]
fn changes_are_told_field_by_field() {
    let vm = |labels: Value, spec: Value| -> AnyObject {
        let object = json!({
            "apiVersion": API_VERSION, "kind": "VM", "metadata": {"name": "web", "labels": labels}, "spec": spec,
        });
        AnyObject::Vm(serde_json::from_value(object).unwrap())
    };
    let var = |name: &str, value: &str| json!({"name": name, "value": value});
    let ports = json!([{"host": 8080, "guest": 80}]);
    let old = vm(
        json!({"tier": "front", "old": "1"}),
        json!({"image": {"name": "a"}, "env": [var("A", "1"), var("B", "2")], "args": ["x"]}),
    );
    let new = vm(
        json!({"tier": "edge"}),
        json!({
            "image": {"oci": "b"}, "env": [var("C", "3"), var("A", "9")], "args": ["x", "y"],
            "network": {"ports": ports}, "rootDisk": {"size": "1Gi"},
        }),
    );
    let shown: Vec<String> = object_changes(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            r#"args ["x"] → ["x","y"] (restart)"#,
            "env[A].value 1 → 9 (restart)",
            r#"env[B] {"name":"B","value":"2"} → (unset) (restart)"#,
            r#"env[C] (unset) → {"name":"C","value":"3"} (restart)"#,
            "image.name a → (unset) (recreate)",
            "image.oci (unset) → b (recreate)",
            r#"network.ports (unset) → [{"host":8080,"guest":80,"protocol":"TCP"}] (restart)"#,
            "rootDisk.size 10Gi → 1Gi (recreate)",
            "labels.old 1 → (unset) (live)",
            "labels.tier front → edge (live)",
        ]
    );
    assert_eq!(object_changes(&old, &old), []);
    // Only the order differs: still a change.
    let swapped = vm(
        json!({"tier": "front", "old": "1"}),
        json!({"image": {"name": "a"}, "env": [var("B", "2"), var("A", "1")], "args": ["x"]}),
    );
    assert_eq!(object_changes(&old, &swapped).len(), 1);
}

#[test]
fn an_edit_of_memory_restarts_and_says_so() {
    let old = spec(json!({"image": {"name": "a"}, "memory": "256Mi"}));
    let new = spec(json!({"image": {"name": "a"}, "memory": "512Mi", "runPolicy": "Once"}));
    let changes = vm_changes(&old, &new);
    let shown: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["memory 256Mi → 512Mi (restart)", "runPolicy Always → Once (live)"]);
    assert_eq!(strongest(&changes), Some(Effect::Restart));
    assert_eq!(strongest(&vm_changes(&old, &old)), None);
}

#[test]
fn violations_name_their_fields() {
    let vm: Vm = serde_json::from_value(json!({
        "apiVersion": API_VERSION, "kind": "VM", "metadata": {"name": "Bad_Name"},
        "spec": {
            "image": {"name": "a", "oci": "b"}, "cpus": 0, "memory": "1Mi",
            "network": {"mode": "none", "ports": [{"host": 0, "guest": 1}]}
        }
    }))
    .unwrap();
    let paths: Vec<String> =
        AnyObject::Vm(vm).violations().into_iter().map(|violation| violation.path).collect();
    assert_eq!(
        paths,
        [
            "metadata.name",
            "spec.image",
            "spec.cpus",
            "spec.memory",
            "spec.network.ports",
            "spec.network.ports[0]"
        ]
    );
}

#[test]
fn quantities_are_kubernetes_quantities() {
    for (text, bytes) in [
        ("0", 0),
        ("1048576", 1 << 20),
        ("256Mi", 256 << 20),
        ("1.5Gi", 3 << 29),
        ("5M", 5_000_000),
        ("0.5k", 500),
    ] {
        assert_eq!(text.parse::<Quantity>(), Ok(Quantity::bytes(bytes)), "{text}");
    }
    for text in ["", "Mi", "-1", "1.Mi.", "1e3", "0.3", "1 Gi", "99999999Ei", "１Gi"] {
        assert!(text.parse::<Quantity>().is_err(), "{text}");
    }
}

#[test]
fn an_empty_choice_is_a_change() {
    let image = |kernel: Value| -> ImageSpec {
        serde_json::from_value(json!({"source": {"oci": {"reference": "a"}}, "kernel": kernel})).unwrap()
    };
    let change = |from, to| {
        let changes = image_changes(&image(from), &image(to));
        changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(change(Value::Null, json!({"image": {}})), "kernel.image (unset) → {} (live)");
    assert_eq!(change(json!({"image": {}}), Value::Null), "kernel.image {} → (unset) (live)");
    assert_eq!(change(json!({"host": {}}), json!({"host": {}})), "");
}

#[test]
fn what_is_to_be_booted_follows_from_source_and_kernel() {
    let spec = |source: Value, kernel: Value| -> ImageSpec {
        serde_json::from_value(json!({"source": source, "kernel": kernel})).unwrap()
    };
    let oci = || json!({"oci": {"reference": "a"}});
    let bundle = || json!({"bundle": {"path": "/b"}});
    let (root, with) = (json!({"files": {"root": "/r"}}), json!({"files": {"root": "/r", "kernel": "/k"}}));
    // The host's as it is needs nothing; one that may have come with the root is looked for.
    for (source, kernel, own) in [
        (oci(), Value::Null, None),
        (oci(), json!({"host": {}}), None),
        (root, Value::Null, None),
        (bundle(), json!({"host": {}}), None),
        (bundle(), Value::Null, Some(None)),
        (with, Value::Null, Some(None)),
        (oci(), json!({"commandLine": "quiet"}), Some(None)),
        (oci(), json!({"host": {}, "commandLine": "quiet"}), Some(Some("the host's kernel"))),
        (bundle(), json!({"file": {"kernel": "/k"}}), Some(Some("/k"))),
        (oci(), json!({"image": {}}), Some(Some("the image's own kernel"))),
        (oci(), json!({"oci": {"reference": "k:1"}}), Some(Some("the kernel of k:1"))),
    ] {
        let choice = spec(source, kernel.clone()).kernel();
        let shown = choice.map(|choice| choice.source.map(|source| source.to_string()));
        assert_eq!(shown, own.map(|own: Option<&str>| own.map(str::to_owned)), "{kernel}");
    }
}

#[test]
fn a_condition_keeps_its_time_while_its_status_stays() {
    let at = |second: i64| jiff::Timestamp::from_second(second).unwrap();
    let ready = |status: bool, second, message: &str| Condition {
        kind: "Ready".to_owned(),
        status: status.into(),
        observed_generation: 1,
        last_transition_time: at(second),
        reason: "Test".to_owned(),
        message: message.to_owned(),
    };
    let mut conditions = Vec::new();
    set_condition(&mut conditions, ready(false, 1, "a"));
    set_condition(&mut conditions, ready(false, 2, "b"));
    assert_eq!((conditions[0].last_transition_time, conditions[0].message.as_str()), (at(1), "b"));
    set_condition(&mut conditions, ready(true, 3, "c"));
    assert_eq!((conditions.len(), conditions[0].last_transition_time), (1, at(3)));
}

proptest! {
    #[test]
    fn a_quantity_survives_its_text(bytes: u64) {
        let quantity = Quantity::bytes(bytes);
        prop_assert_eq!(quantity.to_string().parse::<Quantity>(), Ok(quantity));
    }

    #[test]
    fn no_text_breaks_a_quantity(text in "\\PC*") {
        let _ = text.parse::<Quantity>();
    }
}
