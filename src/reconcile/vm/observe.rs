//! What a VM's task sees before it decides: its process, its guest, its image, its place in line.
//!
//! In: the record, and what the task holds on to. Out: an [`Observed`], which is data only. Nothing here waits.

use tokio::time::Instant;
use vmlet_wire::GuestState;

use super::process::Process;
use super::state::{Guest, LineView, Observed};
use super::{InLine, VmTask};
use crate::reconcile::dependents::blocker;
use crate::store::{Run, VmRecord};

impl VmTask {
    /// Looks at everything that the decision depends on.
    pub(super) fn observe(&mut self, record: &VmRecord, now: Instant) -> Observed {
        self.watch_process(record);
        self.registry_asked &= !matches!(record.run, Run::Up { .. });
        let image = self.image(record);
        let (guest, last) = self.guest(now);
        Observed {
            exit: self.process.as_mut().and_then(Process::poll_exit),
            stopping: self.stopping(record),
            killed: self.process.as_ref().and_then(|process| process.killed.clone()),
            guest,
            last,
            image,
            permit: self.permit.is_some(),
            asked: self.asked,
            failure: self.attempts.failure().cloned(),
            closed_until: self.attempts.closed_until(),
            next_try: self.attempts.next_try(&self.world.clock),
            default_network: self.world.default_network(),
            dependency: self.dependency(record),
            line: self.place_in_line(),
            rebooted: self.rebooted(record),
        }
    }

    fn stopping(&mut self, record: &VmRecord) -> Option<Instant> {
        let Run::Up { stopping: Some(stopping), .. } = &record.run else { return None };
        let VmTask { process, world, .. } = self;
        Some(process.as_mut()?.stopping(stopping.since, &world.clock))
    }

    /// Why the VMs that this one depends on keep it from being started.
    fn dependency(&self, record: &VmRecord) -> Option<String> {
        let depends_on = &record.object.spec.depends_on;
        blocker(&self.key.namespace, depends_on, |key| self.world.store.vm(key))
    }

    /// Where the VM stands in line. Who is called, or struck off, stays called until it claims once more.
    fn place_in_line(&mut self) -> Option<LineView> {
        let Some(InLine::Waits { standing, since, impatient }) = self.line.as_mut() else {
            return self.line.as_ref().map(|_| LineView::Called);
        };
        let called = standing.has_changed().is_err();
        let told = standing.borrow_and_update().clone();
        match told {
            Some(standing) if !called => {
                Some(LineView::Waits { standing, since: *since, impatient: *impatient })
            }
            _ => {
                self.line = Some(InLine::Called);
                Some(LineView::Called)
            }
        }
    }

    /// Whether the recorded process is of an earlier boot of the host.
    fn rebooted(&self, record: &VmRecord) -> bool {
        matches!(&record.run, Run::Up { process, .. } if !self.world.driver.of_this_boot(process))
    }

    /// Follows the recorded process. There is no other before its exit is recorded, which ends the watch.
    fn watch_process(&mut self, record: &VmRecord) {
        let Run::Up { process, .. } = &record.run else {
            self.process = None;
            return;
        };
        if self.process.is_none() {
            let booted = record.object.status.conditions.iter().find(|condition| condition.kind == "Booted");
            let heard = !self.launched && booted.is_some_and(|booted| booted.status == true.into());
            self.process = Some(Process::watch(&self.world, self.uid, process, heard));
        }
    }

    /// The guest as the link shows it, and the last state that it reported. Others reach its agent from now on.
    fn guest(&mut self, now: Instant) -> (Guest, Option<GuestState>) {
        let (guest, agent, last) = match self.process.as_mut() {
            Some(process) => process.guest(),
            None => (Guest::Silent { ever: false, since: now }, None, None),
        };
        self.world.set_agent(self.uid, agent);
        if last.is_some() {
            // A guest that is heard of has booted: its permit is another's.
            self.permit = None;
        }
        (guest, last)
    }
}
