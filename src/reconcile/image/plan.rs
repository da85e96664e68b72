//! What to do next for an image: a pure function of the record and what is seen.

use super::observe::Observed;
use super::step::{Plan, Step};
use crate::boot::{Boot, KernelChoice, KernelSource};
use crate::image::{Digest, Source};
use crate::object::PullPolicy;
use crate::reconcile::pulls::PullState;
use crate::store::{ImageRecord, PinnedImage, PinnedKernel};

/// Decides.
pub(in crate::reconcile) fn plan(record: &ImageRecord, seen: &Observed) -> Plan {
    let deleted = record.object.metadata.deletion_timestamp.is_some();
    let told =
        |step, phase, reason: &str, message: String| Plan { step, phase, reason: reason.to_owned(), message };
    if deleted {
        // Retried for ever, whatever the failure says of itself.
        return match (&seen.failure, seen.closed_until) {
            (Some(failure), Some(until)) => {
                told(Step::Wait(Some(until)), "Terminating", &failure.reason, failure.message.clone())
            }
            _ => told(Step::Remove, "Terminating", "Deleted", "the image is being removed".to_owned()),
        };
    }
    if let Some(plan) = seen.failure.as_ref().and_then(|failure| failure.wait(seen.closed_until)) {
        return plan;
    }
    let Some(source) = record.object.spec.source.chosen(&record.object.metadata.namespace) else {
        return told(Step::Wait(None), "Failed", "InvalidSpec", "spec.source names nothing".to_owned());
    };
    let never = record.object.spec.pull_policy() == PullPolicy::Never;
    let pin = record.image.as_ref().filter(|pin| pin.source == source);
    if never && (pin.is_none() || seen.disk.is_none()) {
        let message = format!("looking for {source} on this host");
        return told(Step::Find(source), "Pending", "Resolving", message);
    }
    let Some(pin) = pin else {
        let message = source.resolving();
        return match &seen.vm {
            None => told(Step::Resolve(source), "Pending", "Resolving", message),
            Some(Ok(digest)) => {
                let pin = PinnedImage { source, digest: digest.clone(), kernel: None };
                told(Step::Pin(pin), "Pending", "Resolving", message)
            }
            Some(Err(why)) => told(Step::Wait(None), "Pending", "WaitingForVM", why.clone()),
        };
    };
    if seen.disk.is_none() {
        return pulling(&source, &pin.digest, seen);
    }
    kernel(record.object.spec.kernel(), pin, seen).unwrap_or_else(|| {
        let message = format!("{source} is {}", pin.digest);
        told(Step::Wait(None), "Ready", "Ready", message)
    })
}

/// What is to be done until VMs can boot; none if they can.
fn kernel(wanted: Option<KernelChoice>, pin: &PinnedImage, seen: &Observed) -> Option<Plan> {
    let told = |step, message: &str| Some(Plan::new(step).told("Pending", "PreparingKernel", message));
    let Some(choice) = wanted else {
        let step = Step::PinKernel(None);
        return pin.kernel.is_some().then(|| told(step, "VMs boot the host's kernel from now on"))?;
    };
    let held = pin.kernel.as_ref().filter(|kernel| kernel.choice == choice);
    if held.is_some_and(|kernel| kernel.boot.is_some()) && seen.kernel.is_some() {
        return None;
    }
    let digest = held.and_then(|kernel| kernel.disk.as_ref());
    match (&choice.source, digest) {
        (Some(KernelSource::Host), _) => {
            let boot = Some(Boot { kernel: None, command_line: choice.command_line.clone() });
            let kernel = PinnedKernel { choice, disk: None, boot };
            told(Step::PinKernel(Some(kernel)), "the kernel's command line changes")
        }
        (Some(KernelSource::Oci(reference)), None) => {
            let source = Source::Oci(reference.clone());
            let message = source.resolving();
            told(Step::ResolveKernel { choice, source }, &message)
        }
        (Some(KernelSource::Oci(reference)), Some(digest)) if !seen.kernel_disk => {
            Some(pulling(&Source::Oci(reference.clone()), digest, seen))
        }
        (source, _) => {
            let source =
                source.as_ref().map_or_else(|| "the image's own kernel".to_owned(), ToString::to_string);
            let new = || PinnedKernel { choice: choice.clone(), disk: None, boot: None };
            let kernel = held.map(|held| (**held).clone()).unwrap_or_else(new);
            told(Step::MakeKernel(kernel), &format!("{source} is made ready to boot"))
        }
    }
}

fn pulling(source: &Source, digest: &Digest, seen: &Observed) -> Plan {
    match &seen.pull {
        None | Some(PullState::Done) => {
            let step = Step::Pull { source: source.clone(), digest: digest.clone() };
            Plan::new(step).told("Pulling", "Pulling", &format!("{source} is about to be pulled"))
        }
        Some(pull) => Plan::pulling(source, pull),
    }
}
