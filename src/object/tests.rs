use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::change::VM_EFFECTS;
use super::*;

fn spec(value: Value) -> VmSpec {
    serde_json::from_value(value).unwrap()
}

#[test]
fn every_spec_field_has_an_effect() {
    let schema = serde_json::to_value(schemars::schema_for!(VmSpec)).unwrap();
    let fields: BTreeSet<&str> =
        schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let table: BTreeSet<&str> = VM_EFFECTS.iter().map(|(field, _)| *field).collect();
    assert_eq!(fields, table);
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
