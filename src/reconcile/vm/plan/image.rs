//! The way to a VM's image: resolve, pin, pull.

use crate::image::Source;
use crate::object::PullPolicy;
use crate::reconcile::pulls::PullState;
use crate::reconcile::vm::state::{ImageView, Observed};
use crate::reconcile::vm::step::{Plan, Step};
use crate::store::{PinnedImage, Run, VmRecord};

/// The pinned image when its disk is ready, else the plan to get it.
#[allow(clippy::result_large_err, reason = "one exists at a time, for one decision")]
pub(super) fn image(record: &VmRecord, seen: &Observed) -> Result<PinnedImage, Plan> {
    match &seen.image {
        ImageView::Unresolved { source, policy: PullPolicy::Never } => Err(find(source)),
        ImageView::Known { pin, policy: PullPolicy::Never, disk: None, direct: true, .. } => {
            Err(find(&pin.source))
        }
        // A VM that runs is left alone: the next start asks.
        ImageView::Known { pin, policy: PullPolicy::Always, asked: false, direct: true, .. }
            if !matches!(record.run, Run::Up { .. }) =>
        {
            let source = &pin.source;
            Err(Plan::new(Step::Resolve(source.clone())).told("Pending", "Resolving", &source.resolving()))
        }
        ImageView::Unresolved { source, .. } => {
            Err(Plan::new(Step::Resolve(source.clone())).told("Pending", "Resolving", &source.resolving()))
        }
        ImageView::Waiting { reason, message } => {
            let phase = if reason == "Pulling" { "Pulling" } else { "Pending" };
            Err(Plan::wait(None).told(phase, reason, message))
        }
        ImageView::Known { pin, .. } if record.image.as_ref() != Some(pin) => {
            Err(Plan::new(Step::Pin(pin.clone())).told("Pending", "Resolving", "the image's digest is known"))
        }
        ImageView::Known { pin, disk: Some(_), .. } => Ok(pin.clone()),
        ImageView::Known { pin, disk: None, pull: Some(PullState::Done), .. }
        | ImageView::Known { pin, disk: None, pull: None, direct: true, .. } => Err(Plan::new(Step::Pull(
            pin.clone(),
        ))
        .told("Pulling", "Pulling", "the image is about to be pulled")),
        ImageView::Known { pull: None, .. } => {
            let message = "its Image object is being pulled";
            Err(Plan::wait(None).told("Pulling", "Pulling", message))
        }
        ImageView::Known { pin, pull: Some(pull), .. } => Err(Plan::pulling(&pin.source, pull)),
    }
}

fn find(source: &Source) -> Plan {
    let message = format!("looking for {source} on this host");
    Plan::new(Step::Find(source.clone())).told("Pending", "Resolving", &message)
}
