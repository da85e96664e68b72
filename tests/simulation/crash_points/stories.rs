//! Lives of VMs and images, each told as what is done to the folder and the world.

use std::time::Duration;

use vmlet::object::{Kind, ObjectKey};
use vmlet::testing::{Action, ImageScript, VmScript, WorkloadExit};

use crate::kernels::image_with;
use crate::schedule::{image, image_of, vm};

pub(super) enum Step {
    Write(&'static str, String),
    Remove(&'static str),
    Do(Action),
    Script(VmScript),
    /// In this story base disks that nothing refers to are kept for so many seconds.
    Grace(u64),
    /// Lets so much time pass.
    Wait(u64),
    /// Until all is as the folder says.
    Settle,
}

pub(super) fn web() -> ObjectKey {
    ObjectKey::new(Kind::Vm, "default", "web")
}

/// `web`, of the image `base` or of a reference.
fn web_with(more: &str) -> String {
    vm("web", "x", &format!("{{image: {{name: base}}{more}}}"))
}

/// A folder with an image and a VM, all of it ready.
fn up(more: &str) -> Vec<Step> {
    vec![
        Step::Write("image.yaml", image("base", "r/a:1")),
        Step::Write("web.yaml", web_with(more)),
        Step::Settle,
    ]
}

fn with(mut steps: Vec<Step>, more: Vec<Step>) -> Vec<Step> {
    steps.extend(more);
    steps.push(Step::Settle);
    steps
}

pub(super) type Story = (&'static str, fn() -> Vec<Step>);

/// Of a VM and its image.
pub(super) const PLAIN: [Story; 16] = [
    ("create", || up("")),
    ("create of a reference", || {
        vec![
            Step::Write(
                "web.yaml",
                vm("web", "x", "{image: {oci: 'r/a:1'}, network: {ports: [{host: 80, guest: 80}]}}"),
            ),
            Step::Settle,
        ]
    }),
    ("memory is edited", || with(up(""), vec![Step::Write("web.yaml", web_with(", memory: 512Mi"))])),
    ("the disk is edited", || {
        with(up(""), vec![Step::Write("web.yaml", web_with(", rootDisk: {size: 2Gi}"))])
    }),
    ("the network is edited", || {
        with(
            up(", network: {ports: [{host: 80, guest: 80}]}"),
            vec![Step::Write("web.yaml", web_with(", network: {mode: user}"))],
        )
    }),
    ("the image is edited", || with(up(""), vec![Step::Write("image.yaml", image("base", "r/a:2"))])),
    ("the VM is deleted", || with(up(""), vec![Step::Remove("web.yaml")])),
    ("everything is deleted", || with(up(""), vec![Step::Remove("web.yaml"), Step::Remove("image.yaml")])),
    ("the image is deleted first", || {
        with(up(""), vec![Step::Remove("image.yaml"), Step::Wait(5), Step::Remove("web.yaml")])
    }),
    ("deleted and declared again", || {
        let deaf = VmScript { deaf: true, ..VmScript::default() };
        let more = ", terminationGracePeriodSeconds: 5";
        let again = vec![
            Step::Remove("web.yaml"),
            Step::Wait(1),
            Step::Write("web.yaml", web_with(", memory: 512Mi")),
        ];
        with(with(vec![Step::Script(deaf)], up(more)), again)
    }),
    ("the workload ends", || with(up(""), vec![Step::Do(Action::EndWorkload(web(), 1)), Step::Wait(1)])),
    ("a job ends", || {
        let exit = WorkloadExit { after: Duration::from_secs(3), code: 0, times: Some(1) };
        let job = VmScript { exit: Some(exit), ..VmScript::default() };
        with(with(vec![Step::Script(job)], up(", runPolicy: Once")), vec![Step::Wait(10)])
    }),
    ("a boot hangs, the next one panics", || {
        with(vec![Step::Script(VmScript { hangs: 1, panics: 1, ..VmScript::default() })], up(""))
    }),
    ("a kernel of another image", || {
        let kernel = |reference: &str| format!("oci: {{reference: '{reference}'}}");
        let image =
            |reference: &str| Step::Write("image.yaml", image_with("base", "r/a:1", &kernel(reference)));
        with(with(up(""), vec![image("r/a:2")]), vec![Step::Remove("web.yaml"), Step::Remove("image.yaml")])
    }),
    ("the kernel is edited", || {
        let image = |kernel: &str| Step::Write("image.yaml", image_with("base", "r/a:1", kernel));
        let first = vec![image("file: {kernel: /k/1}"), Step::Write("web.yaml", web_with("")), Step::Settle];
        with(with(first, vec![image("image: {}"), Step::Settle]), vec![image("commandLine: quiet")])
    }),
    ("halted, and the host reboots", || {
        let halt = vec![
            Step::Write("web.yaml", web_with(", runPolicy: Halted")),
            Step::Settle,
            Step::Write("web.yaml", web_with("")),
        ];
        let reboot =
            vec![Step::Settle, Step::Do(Action::Reboot { down: Duration::from_secs(9) }), Step::Wait(1)];
        with(with(up(""), halt), reboot)
    }),
];

/// Of images of all kinds, of their disks, and of other sources.
pub(super) const IMAGES: [Story; 7] = [
    ("an image is made of a VM", || {
        let builder = |policy: &str| Step::Write("web.yaml", web_with(&format!(", runPolicy: {policy}")));
        let golden = Step::Write("golden.yaml", image_of("golden", "vm: {name: web}", ""));
        let child = Step::Write("child.yaml", vm("child", "x", "{image: {name: golden}}"));
        let made = vec![golden, builder("Halted"), Step::Settle, child, builder("Always"), Step::Settle];
        with(with(up(""), made), vec![Step::Remove("child.yaml"), Step::Remove("golden.yaml")])
    }),
    ("a tag moves that is asked for always", || {
        let always = "oci: {reference: 'r/a:1', pullPolicy: Always}";
        let first = vec![
            Step::Write("image.yaml", image_of("base", always, "")),
            Step::Write("web.yaml", web_with("")),
        ];
        let moved = Action::ScriptImage("r/a:1".to_owned(), ImageScript::new('c', Duration::from_secs(2)));
        with(with(first, vec![Step::Do(moved)]), vec![Step::Write("web.yaml", web_with(", memory: 512Mi"))])
    }),
    ("an image that is never pulled is brought by another", || {
        let never = vm("web", "x", "{image: {oci: 'r/a:1', pullPolicy: Never}}");
        let other = vm("other", "x", "{image: {oci: 'r/a:1'}}");
        let first = vec![Step::Write("web.yaml", never), Step::Settle, Step::Write("other.yaml", other)];
        with(with(first, vec![Step::Remove("other.yaml")]), vec![Step::Remove("web.yaml")])
    }),
    ("a grace ends", || {
        let gone = vec![Step::Grace(30), Step::Remove("web.yaml"), Step::Remove("image.yaml")];
        with(with(up(""), gone), vec![Step::Wait(60)])
    }),
    ("an unused disk makes room in its grace", || {
        let room = Step::Do(Action::Room { total: (1 << 20) + 1, taken: 0 });
        let gone = vec![
            Step::Grace(100_000),
            room,
            Step::Remove("web.yaml"),
            Step::Remove("image.yaml"),
            Step::Wait(20),
        ];
        let other = Step::Write("web.yaml", vm("web", "x", "{image: {oci: 'r/a:2'}}"));
        with(with(up(""), gone), vec![other])
    }),
    ("image and VM move to another source", || {
        let moved = vec![
            Step::Remove("image.yaml"),
            Step::Write("/others/image.yaml", image("base", "r/a:2")),
            Step::Settle,
            Step::Write("/others/web.yaml", web_with(", memory: 512Mi")),
            Step::Wait(5),
            Step::Remove("web.yaml"),
        ];
        with(up(""), moved)
    }),
    ("a registry's image becomes a bundle", || {
        with(up(""), vec![Step::Write("image.yaml", image_of("base", "bundle: {path: /srv/b.tar}", ""))])
    }),
];
