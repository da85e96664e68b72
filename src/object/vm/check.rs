//! The rules of a VM's spec that its types cannot hold.

use std::collections::BTreeSet;

use super::{NetworkMode, VmSpec};
use crate::object::source::check_reference;
use crate::object::{Quantity, Violation, validate_name};

/// The longest `dependsOn`.
const MAX_DEPENDENCIES: usize = 64;
/// The most that a command may take, and an environment, in bytes.
const MAX_WORDS: usize = 64 << 10;

impl VmSpec {
    /// Whether the VM of this name keeps to the rules.
    pub(in crate::object) fn check(&self, own_name: &str, found: &mut Vec<Violation>) {
        self.check_dependencies(own_name, found);
        self.check_image(found);
        self.check_size(found);
        self.check_command(found);
        self.check_network(found);
    }

    fn check_image(&self, found: &mut Vec<Violation>) {
        rule(
            found,
            self.image.name.is_some() != self.image.oci.is_some(),
            "spec.image",
            "set exactly one of `name` (an Image object) and `oci` (an OCI reference)",
        );
        rule(
            found,
            self.image.oci.is_some() || self.image.pull_policy.is_default(),
            "spec.image.pullPolicy",
            "belongs to the Image object: set it there",
        );
        if let Some(name) = &self.image.name
            && let Err(message) = validate_name(name)
        {
            found.push(Violation::new("spec.image.name", message));
        }
        if let Some(reference) = &self.image.oci {
            check_reference("spec.image.oci", reference, found);
        }
    }

    fn check_size(&self, found: &mut Vec<Violation>) {
        let mib = |quantity: Quantity| quantity.as_bytes() >> 20;
        let whole = |quantity: Quantity| quantity.as_bytes().is_multiple_of(1 << 20);
        let (memory, disk) = (self.memory, self.root_disk.size);
        rule(found, (1..=64).contains(&self.cpus), "spec.cpus", "use 1 to 64");
        rule(found, (64..=1 << 24).contains(&mib(memory)), "spec.memory", "use 64Mi to 16Ti");
        rule(found, whole(memory), "spec.memory", "use whole mebibytes, for example 256Mi");
        rule(found, (64..=1 << 24).contains(&mib(disk)), "spec.rootDisk.size", "use 64Mi to 16Ti");
        rule(found, whole(disk), "spec.rootDisk.size", "use whole mebibytes, for example 10Gi");
        let grace = self.termination_grace_period_seconds;
        rule(found, grace <= 3600, "spec.terminationGracePeriodSeconds", "use 0 to 3600");
    }

    fn check_command(&self, found: &mut Vec<Violation>) {
        let dir = self.working_dir.as_ref();
        let absolute = dir.is_none_or(|dir| dir.starts_with('/'));
        rule(found, absolute, "spec.workingDir", "use an absolute path");
        let words = self.command.iter().chain(&self.args);
        let plain = words.clone().all(|word| !word.contains('\0'));
        rule(found, plain, "spec.command", "words cannot hold NUL bytes");
        rule(
            found,
            words.map(String::len).sum::<usize>() <= MAX_WORDS,
            "spec.command",
            "command and args are at most 64 KiB together",
        );
        rule(
            found,
            self.env.iter().map(|var| var.name.len() + var.value.len()).sum::<usize>() <= MAX_WORDS,
            "spec.env",
            "names and values are at most 64 KiB together",
        );
        for (index, var) in self.env.iter().enumerate() {
            rule(
                found,
                !var.name.is_empty() && !var.name.contains(['=', '\0']) && !var.value.contains('\0'),
                &format!("spec.env[{index}]"),
                "a name is not empty and has no '='; neither name nor value holds NUL bytes",
            );
        }
    }

    fn check_network(&self, found: &mut Vec<Violation>) {
        let network = &self.network;
        let bridged = network.mode.is_none_or(|mode| mode == NetworkMode::Bridge);
        rule(
            found,
            network.address.is_none() || bridged,
            "spec.network.address",
            "an address can be chosen only with mode: bridge",
        );
        rule(
            found,
            network.ports.is_empty() || network.mode != Some(NetworkMode::None),
            "spec.network.ports",
            "ports need a network: mode is none",
        );
        rule(found, network.ports.len() <= 64, "spec.network.ports", "at most 64 ports");
        let mut hosts = BTreeSet::new();
        for (index, port) in network.ports.iter().enumerate() {
            let path = format!("spec.network.ports[{index}]");
            rule(found, port.host != 0 && port.guest != 0, &path, "ports are 1 to 65535");
            let new = hosts.insert((port.host, port.protocol));
            rule(found, new, &path, "this host port is listed twice");
        }
    }

    fn check_dependencies(&self, own_name: &str, found: &mut Vec<Violation>) {
        if self.depends_on.len() > MAX_DEPENDENCIES {
            let message = format!("at most {MAX_DEPENDENCIES} VMs");
            return found.push(Violation::new("spec.dependsOn", message));
        }
        let mut names = BTreeSet::new();
        for (index, name) in self.depends_on.iter().enumerate() {
            let path = format!("spec.dependsOn[{index}]");
            if name == own_name {
                found.push(Violation::new(path, "a VM cannot wait for itself"));
            } else if let Err(message) = validate_name(name) {
                found.push(Violation::new(path, message));
            } else if !names.insert(name) {
                found.push(Violation::new(path, format!("{name} is listed twice")));
            }
        }
    }
}

fn rule(found: &mut Vec<Violation>, holds: bool, path: &str, message: &str) {
    if !holds {
        found.push(Violation::new(path, message));
    }
}
