//! What a guest is told at boot.

use super::super::guest_config::guest_config;
use super::*;
use crate::object::EnvVar;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// The image's own config: all of it is set.
fn config() -> ImageConfig {
    ImageConfig {
        entrypoint: words(&["/entry"]),
        cmd: words(&["default"]),
        env: words(&["A=image", "B=image"]),
        working_dir: Some("/image".to_owned()),
        user: Some("image".to_owned()),
        stop_signal: Some("SIGQUIT".to_owned()),
    }
}

fn workload(image: &ImageConfig, edit: impl FnOnce(&mut VmSpec)) -> vmlet_wire::Workload {
    guest_config(&edited(record(), edit).object, image, None, &[]).workload
}

#[test]
fn the_images_config_counts_where_the_spec_says_nothing() {
    let told = workload(&config(), |spec| spec.termination_grace_period_seconds = 7);
    assert_eq!(told.argv, ["/entry", "default"]);
    assert_eq!(told.env, ["A=image", "B=image"]);
    let (dir, user, signal) = (told.working_dir, told.user, told.stop_signal);
    assert_eq!(
        (dir.as_deref(), user.as_deref(), signal.as_deref()),
        (Some("/image"), Some("image"), Some("SIGQUIT"))
    );
    assert_eq!(told.grace_seconds, 7);
    let own = workload(&config(), |spec| {
        spec.env = vec![EnvVar { name: "A".to_owned(), value: "own".to_owned() }];
        spec.working_dir = Some("/own".to_owned());
        spec.user = Some("own".to_owned());
    });
    assert_eq!(own.env, ["A=image", "B=image", "A=own"], "the last one counts");
    assert_eq!((own.working_dir.as_deref(), own.user.as_deref()), (Some("/own"), Some("own")));
}

#[test]
fn a_command_replaces_entrypoint_and_arguments_and_arguments_only_themselves() {
    let command = |spec: &mut VmSpec| spec.command = words(&["run"]);
    let args = |spec: &mut VmSpec| spec.args = words(&["arg"]);
    assert_eq!(workload(&config(), command).argv, ["run"]);
    assert_eq!(workload(&config(), args).argv, ["/entry", "arg"]);
    assert_eq!(workload(&config(), |spec| (command(spec), args(spec)).0).argv, ["run", "arg"]);
}

#[test]
fn an_init_system_is_preferred_when_nothing_says_what_to_run() {
    let without = ImageConfig { entrypoint: Vec::new(), ..config() };
    assert!(workload(&without, |_| {}).prefer_init);
    assert!(!workload(&config(), |_| {}).prefer_init, "the entrypoint says so");
    assert!(!workload(&without, |spec| spec.command = words(&["run"])).prefer_init);
    assert!(!workload(&without, |spec| spec.args = words(&["arg"])).prefer_init);
}
