//! What a guest is told at boot: the spec over the image's own config.

use vmlet_wire::{GuestConfig, GuestNetwork, Workload};

use crate::image::ImageConfig;
use crate::network::{Link, Nic};
use crate::object::Vm;

/// Slirp's fixed addresses (QEMU's documentation, "Using the user mode network stack").
const SLIRP: (&str, u8, &str, &str) = ("10.0.2.15", 24, "10.0.2.2", "10.0.2.3");

/// Joins spec, image config and reservation.
///
/// `command` replaces the entrypoint, and with it the image's default arguments; `args` alone replaces
/// only those (as in Kubernetes). An init system of the image is preferred when neither the spec nor
/// the image's entrypoint says what to run.
pub(super) fn guest_config(
    vm: &Vm,
    image: &ImageConfig,
    nic: Option<&Nic>,
    resolvers: &[String],
) -> GuestConfig {
    let spec = &vm.spec;
    let (entrypoint, arguments) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.entrypoint, &spec.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let own_env = spec.env.iter().map(|var| format!("{}={}", var.name, var.value));
    GuestConfig {
        hostname: vm.metadata.name.clone(),
        network: nic.map(|nic| network(nic, resolvers)),
        workload: Workload {
            prefer_init: spec.command.is_empty() && spec.args.is_empty() && image.entrypoint.is_empty(),
            argv: entrypoint.iter().chain(arguments).cloned().collect(),
            env: image.env.iter().cloned().chain(own_env).collect(),
            working_dir: spec.working_dir.clone().or_else(|| image.working_dir.clone()),
            user: spec.user.clone().or_else(|| image.user.clone()),
            stop_signal: image.stop_signal.clone(),
            grace_seconds: spec.termination_grace_period_seconds,
        },
        export: None,
    }
}

fn network(nic: &Nic, resolvers: &[String]) -> GuestNetwork {
    let mac = nic.mac.clone();
    match &nic.link {
        Link::Bridge { address, prefix, gateway, .. } => GuestNetwork {
            mac,
            address: address.to_string(),
            prefix: *prefix,
            gateway: Some(gateway.to_string()),
            resolvers: resolvers.to_vec(),
        },
        Link::User => {
            let (address, prefix, gateway, resolver) = SLIRP;
            GuestNetwork {
                mac,
                address: address.to_owned(),
                prefix,
                gateway: Some(gateway.to_owned()),
                resolvers: vec![resolver.to_owned()],
            }
        }
    }
}
