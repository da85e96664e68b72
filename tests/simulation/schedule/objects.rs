//! What the files of a schedule declare: VMs and images, plain or with what a schedule plays with.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use vmlet::object::{Kind, ObjectKey};

use super::Play;

/// As many names as VMs have.
pub(super) const VMS: u32 = 6;
/// Files of the host that an image is made of, and which change.
pub(super) const HOST_FILES: &str = "/srv/root.ext4";
const REFERENCES: [&str; 5] = ["r/a:1", "r/a:2", "r/b:1", "r/same:1", "r/missing:1"];
const NEVER: &str = "Never";

pub(super) fn vm_key(number: u32) -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", format!("v{number}"))
}

pub(super) fn image_key(number: u32) -> ObjectKey {
    ObjectKey::new(Kind::Image, "default", format!("i{number}"))
}

pub(crate) fn vm(name: &str, label: &str, spec: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\nspec: {spec}\n"
    )
}

pub(crate) fn image(name: &str, reference: &str) -> String {
    image_of(name, &format!("oci: {{reference: '{reference}'}}"), "")
}

/// An image of any source; `more` follows it in its spec.
pub(crate) fn image_of(name: &str, source: &str, more: &str) -> String {
    format!(
        "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: {name}}}\nspec: {{source: {{{source}}}{more}}}\n"
    )
}

/// An object of this name, whatever it is to be.
pub(super) fn object(dice: &mut StdRng, play: &Play, key: &ObjectKey) -> String {
    match key.kind {
        Kind::Image => random_image(dice, play, &key.name),
        Kind::Vm => random_vm(dice, play, &key.name),
    }
}

fn random_image(dice: &mut StdRng, play: &Play, name: &str) -> String {
    let source = if play.promotions && dice.random_bool(0.3) {
        format!("vm: {{name: v{}}}", dice.random_range(0..VMS / 2))
    } else if play.sources && dice.random_bool(0.5) {
        let files = format!("files: {{root: {HOST_FILES}}}");
        let others = [
            "ociLayout: {path: /srv/app.tar, reference: 'app:1'}",
            "bundle: {path: /srv/bundle.tar}",
            &files,
        ];
        (*others.choose(dice).unwrap()).to_owned()
    } else {
        let reference = *REFERENCES.choose(dice).unwrap();
        format!("oci: {{reference: '{reference}', pullPolicy: {}}}", policy(dice, play))
    };
    let kernels = ["host: {}", "host: {}, commandLine: quiet", "image: {}", "file: {kernel: /k/1}"];
    let kernel = match dice.random_range(0..6) {
        _ if !play.kernels => String::new(),
        0 => String::new(),
        1 | 2 => format!(", kernel: {{oci: {{reference: '{}'}}}}", REFERENCES.choose(dice).unwrap()),
        _ => format!(", kernel: {{{}}}", kernels.choose(dice).unwrap()),
    };
    image_of(name, &source, &kernel)
}

fn policy(dice: &mut StdRng, play: &Play) -> &'static str {
    let policies = ["IfNotPresent", "Always", "Always", NEVER];
    if play.policies { policies.choose(dice).unwrap() } else { policies[0] }
}

fn random_vm(dice: &mut StdRng, play: &Play, name: &str) -> String {
    let image = if dice.random_bool(0.5) {
        format!("name: i{}", *[0, 0, 1, 2].choose(dice).unwrap())
    } else {
        format!("oci: '{}', pullPolicy: {}", REFERENCES.choose(dice).unwrap(), policy(dice, play))
    };
    let depends = depends_on(dice, name);
    let mut pick = |options: &[&'static str]| *options.choose(dice).unwrap();
    let memory = pick(&["128Mi", "256Mi", "256Mi", "400Mi"]);
    let disk = pick(&["1Gi", "1Gi", "2Gi"]);
    let network = pick(&[
        "{}",
        "{}",
        "{ports: [{host: 80, guest: 80}]}",
        "{ports: [{host: 81, guest: 80}]}",
        "{address: 10.63.0.9}",
        "{mode: user}",
        "{mode: none}",
    ]);
    let run = pick(&["Always", "Always", "Always", "RerunOnFailure", "Once", "Halted"]);
    let grace = pick(&["0", "1", "10"]);
    let label = pick(&["x", "y"]);
    let cpus = pick(&["1", "1", "2"]);
    let priority = pick(&["0", "0", "7", "-3"]);
    vm(
        name,
        label,
        &format!(
            "{{image: {{{image}}}, cpus: {cpus}, priority: {priority}, dependsOn: [{depends}], memory: {memory}, rootDisk: {{size: {disk}}}, network: {network}, runPolicy: {run}, terminationGracePeriodSeconds: {grace}}}"
        ),
    )
}

/// Only on smaller numbers: nothing goes round in a circle.
fn depends_on(dice: &mut StdRng, name: &str) -> String {
    let number: u32 = name[1..].parse().unwrap();
    let count = if number > 0 { *[0, 0, 1, 2].choose(dice).unwrap() } else { 0 };
    let depends: BTreeSet<String> =
        (0..count).map(|_| format!("v{}", dice.random_range(0..number))).collect();
    Vec::from_iter(depends).join(", ")
}
