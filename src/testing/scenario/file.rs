//! What a scenario file says. The comments are its reference (`docs/scenarios.md`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::object::{ObjectKey, Period, Quantity};
use crate::testing::Trouble;

/// A bad day, and what is expected of it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    /// `vmlet.dev/v1alpha1`.
    #[expect(dead_code, reason = "checked by its type")]
    api_version: Version,
    /// `Scenario`.
    #[expect(dead_code, reason = "checked by its type")]
    kind: FileKind,
    /// How long is simulated: long after the last step.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "String", extend("format" = "period"))]
    pub(super) duration: Period,
    /// What chance does.
    #[serde(default)]
    pub(super) trouble: Mood,
    /// What the host has for VMs; plenty when absent.
    pub(super) capacity: Option<Room>,
    /// How image sources behave, by reference, path or URL. Others are there, and pulled in three seconds.
    #[serde(default)]
    pub(super) images: BTreeMap<String, ImageTrouble>,
    /// How VMs behave, by name or NAMESPACE/NAME. Others boot in a second and run on.
    #[serde(default)]
    pub(super) vms: BTreeMap<String, VmTrouble>,
    /// What happens meanwhile, in any order. Each step has a time and one thing that is done.
    #[serde(default)]
    pub(super) steps: Vec<Step>,
    /// What must hold. Objects about whose readiness in the end nothing is said must be ready in the
    /// end, or at rest as their run policies say.
    #[serde(default)]
    pub(super) expect: Vec<Expectation>,
}

/// A calm day.
impl Default for File {
    fn default() -> Self {
        File {
            api_version: Version::V1Alpha1,
            kind: FileKind::Scenario,
            duration: ten_minutes(),
            trouble: Mood::default(),
            capacity: None,
            images: BTreeMap::new(),
            vms: BTreeMap::new(),
            steps: Vec::new(),
            expect: Vec::new(),
        }
    }
}

fn ten_minutes() -> Period {
    Period::seconds(600)
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
enum Version {
    #[serde(rename = "vmlet.dev/v1alpha1")]
    V1Alpha1,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
enum FileKind {
    Scenario,
}

/// Trouble by chance, which follows from the seed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum Mood {
    /// Everything happens at once, in the same order with every seed.
    None,
    /// Everything takes a moment, in another order with each seed; nothing fails.
    #[default]
    Shuffled,
    /// Whatever can go wrong does now and then: failures, boots that hang or panic, workloads that end,
    /// broken links, daemons that die, full disks.
    Rough,
}

impl From<Mood> for Trouble {
    fn from(mood: Mood) -> Trouble {
        match mood {
            Mood::None => Trouble::NONE,
            Mood::Shuffled => Trouble::SHUFFLED,
            // What no retry mends would be a verdict on the dice, not on the manifests.
            Mood::Rough => Trouble { lasting: 0.0, ..Trouble::ROUGH },
        }
    }
}

/// What there is for VMs.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Room {
    /// Memory for all VMs together.
    pub(super) memory: Option<Quantity>,
    /// Processors for all VMs together.
    pub(super) cpus: Option<u32>,
    /// Disk space for all VMs together.
    pub(super) disk: Option<Quantity>,
}

/// How an image reference behaves.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ImageTrouble {
    /// How long a pull takes.
    #[serde(default = "three_seconds")]
    #[schemars(with = "String", extend("format" = "period"))]
    pub(super) pull: Period,
    /// So many pulls fail before one succeeds.
    #[serde(default)]
    pub(super) failures: u32,
    /// No pull ever succeeds.
    #[serde(default)]
    pub(super) broken: bool,
    /// It is not in the registry.
    #[serde(default)]
    pub(super) missing: bool,
}

fn three_seconds() -> Period {
    Period::seconds(3)
}

/// How a VM behaves.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VmTrouble {
    /// How long a boot takes.
    #[serde(default = "one_second")]
    #[schemars(with = "String", extend("format" = "period"))]
    pub(super) boot: Period,
    /// So many boots hang before one succeeds: the guest says nothing.
    #[serde(default)]
    pub(super) hangs: u32,
    /// So many boots end in a kernel panic before one succeeds.
    #[serde(default)]
    pub(super) panics: u32,
    /// Its workload ends by itself.
    pub(super) exit: Option<Exit>,
    /// It ignores shutdowns and has to be killed.
    #[serde(default)]
    pub(super) ignores_shutdown: bool,
}

fn one_second() -> Period {
    Period::seconds(1)
}

/// The end of a workload.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Exit {
    /// How long it runs.
    #[schemars(with = "String", extend("format" = "period"))]
    pub(super) after: Period,
    /// Its exit code.
    #[serde(default)]
    pub(super) code: i32,
    /// So many runs end, the later ones do not; every run when absent.
    pub(super) times: Option<u32>,
}

/// Something that happens at a time.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Step {
    /// When, from the start.
    #[schemars(with = "String", extend("format" = "period"))]
    pub(super) at: Period,
    /// A file, or the files of a folder, are put into the manifests folder, in the place of those of the
    /// same names. The path counts from the scenario's folder.
    pub(super) apply: Option<String>,
    /// Another folder takes the place of the manifests folder, as after a merge. Its path counts from
    /// the scenario's folder.
    pub(super) replace: Option<String>,
    /// A file of the manifests folder is removed.
    pub(super) remove: Option<String>,
    /// The daemon is killed, and started again so much later.
    #[schemars(with = "Option<String>", extend("format" = "period"))]
    pub(super) crash: Option<Period>,
    /// The host loses its power, and all VMs with it; the daemon starts so much later.
    #[schemars(with = "Option<String>", extend("format" = "period"))]
    pub(super) reboot: Option<Period>,
    /// The VMM of this VM dies, as when the host kills it for memory.
    pub(super) kill_vmm: Option<String>,
    /// A workload ends.
    pub(super) exit: Option<ExitNow>,
    /// How image sources behave from now on.
    pub(super) images: Option<BTreeMap<String, ImageTrouble>>,
    /// `true`: the store's next write fails, as on a full disk; the daemon is started again.
    pub(super) fail_store: Option<bool>,
    /// What chance does from now on.
    pub(super) trouble: Option<Mood>,
}

/// Which workload ends, and how.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExitNow {
    /// Its VM, by name or NAMESPACE/NAME.
    pub(super) vm: String,
    /// Its exit code.
    #[serde(default)]
    pub(super) code: i32,
}

/// What must hold of an object.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Expectation {
    /// `vm/web`, `image/debian`, `vm/NAMESPACE/NAME`.
    #[schemars(with = "String", extend("format" = "object"))]
    pub(super) object: Name,
    /// When it must hold, before the steps of that time; in the end when absent.
    #[schemars(with = "Option<String>", extend("format" = "period"))]
    pub(super) at: Option<Period>,
    /// Whether it is ready.
    pub(super) ready: Option<bool>,
    /// What `vmlet get` shows as STATUS.
    pub(super) phase: Option<String>,
    /// The reason of its `Ready` condition.
    pub(super) reason: Option<String>,
    /// It was started again so often at most.
    pub(super) restarts_at_most: Option<u32>,
    /// Whether it is gone.
    pub(super) gone: Option<bool>,
}

/// An object, as text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Name(pub(super) ObjectKey);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Name)
    }
}
