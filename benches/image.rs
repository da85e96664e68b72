//! From a registry on this machine to a bootable disk: how fast, with how much memory, compared with the
//! tools that do it today and with the least that it can take.

#[path = "image/child.rs"]
mod child;
mod common;
#[path = "image/content.rs"]
mod content;
#[path = "image/peers.rs"]
mod peers;
#[path = "image/registry.rs"]
mod registry;

use child::Pulled;
use common::{Target, figure};
use content::Layer;
use registry::{Image, Registry};

const MB: u64 = 1_000_000;
/// What is fast is measured so often.
const RUNS: usize = 3;

fn main() {
    if child::run() {
        return;
    }
    let runtime = common::runtime();
    let registry = runtime.block_on(Registry::start());
    // One figure while working on it: `IMAGE_BENCH=cold cargo bench --bench image`.
    let only = std::env::var("IMAGE_BENCH").ok();
    let chosen = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let image = |name: &str, layers: &[Layer]| runtime.block_on(registry.image(name, layers));
    if chosen("cold") {
        // 530 MB in the registry, 1.2 GB unpacked.
        let layers = [1, 2, 3].map(|seed| Layer { seed, bytes: 400 * MB, files: 10_000 });
        cold(&registry, &image("three-layers", &layers));
    }
    if chosen("memory") {
        let layer = |bytes| [Layer { seed: 4, bytes, files: 1000 }];
        memory(&registry, [&image("small", &layer(100 * MB)), &image("large", &layer(400 * MB))]);
    }
    if chosen("many") {
        let names = (1..9).map(|seed| (format!("one-of-many-{seed}"), 10 * seed));
        let layers =
            |seed: u64| [1, 2].map(|layer| Layer { seed: seed + layer, bytes: 80 * MB, files: 2000 });
        let images: Vec<Image> = names.map(|(name, seed)| image(&name, &layers(seed))).collect();
        many(&registry, &images);
    }
    if chosen("layers") {
        let layers: Vec<Layer> = (100..200).map(|seed| Layer { seed, bytes: 4 * MB, files: 100 }).collect();
        odd("100 layers", &registry, &image("hundred-layers", &layers));
    }
    if chosen("files") {
        let layers = [Layer { seed: 5, bytes: 400 * MB, files: 200_000 }];
        odd("200,000 files", &registry, &image("many-files", &layers));
    }
}

fn cold(registry: &Registry, image: &Image) {
    let reference = registry.reference(image);
    let pulled = median_pull(registry, image);
    let floor = median_floor(image);
    figure("image of 3 layers, 1.2 GB: cold pull", pulled.seconds, "s", Target::None);
    figure("  its processor time", pulled.cpu_seconds, "s", Target::None);
    figure("  the floor: inflate in parallel, write once", floor, "s", Target::None);
    figure("  pull over floor", pulled.seconds / floor, "x", Target::AtMost(1.5));
    figure("  peak memory", mebibytes(pulled.peak_bytes), "MiB", Target::AtMost(150.0));
    figure("  again, when it is there", pulled.again_seconds * 1000.0, "ms", Target::AtMost(10.0));
    let folder = common::folder();
    peers::calm(image);
    let unpacked: u64 = image.layers.iter().map(|layer| layer.unpacked).sum();
    let tools = peers::three_tools(&reference, folder.path(), unpacked * 3 / 2).as_secs_f64();
    figure("  skopeo copy + umoci unpack + mke2fs -d", tools, "s", Target::None);
    figure("  they over pull", tools / pulled.seconds, "x", Target::AtLeast(8.0));
    peers::calm(image);
    if let Some(podman) = peers::podman(&reference, folder.path()) {
        let podman = podman.as_secs_f64();
        figure("  podman pull (to a tree)", podman, "s", Target::None);
        figure("  podman over pull", podman / pulled.seconds, "x", Target::None);
    }
}

/// Twice the same but for the layer's length.
fn memory(registry: &Registry, images: [&Image; 2]) {
    let [small, large] = images.map(|image| mebibytes(pull(registry, &[image]).peak_bytes));
    figure("a layer of 100 MB: peak memory", small, "MiB", Target::AtMost(150.0));
    figure("  one of 400 MB: more by", large - small, "MiB", Target::AtMost(8.0));
}

fn many(registry: &Registry, images: &[Image]) {
    let mut alone = 0.0;
    for count in [1, 4, 8] {
        let images: Vec<&Image> = images.iter().take(count).collect();
        let pulled = pull(registry, &images);
        let unpacked: u64 = images.iter().flat_map(|image| &image.layers).map(|layer| layer.unpacked).sum();
        let rate = unpacked as f64 / 1e6 / pulled.seconds;
        figure(&format!("{count} images at once: unpacked"), rate, "MB/s", Target::None);
        if count == 1 {
            alone = rate;
            continue;
        }
        figure("  over one alone", rate / alone, "x", Target::AtLeast(0.9));
        let memory = mebibytes(pulled.peak_bytes) / count as f64;
        figure("  peak memory, an image", memory, "MiB", Target::AtMost(150.0));
    }
}

/// An image of a shape that costs more than its bytes.
fn odd(name: &str, registry: &Registry, image: &Image) {
    let pulled = median_pull(registry, image);
    let floor = median_floor(image);
    figure(&format!("image of {name}: cold pull"), pulled.seconds, "s", Target::None);
    figure("  pull over floor", pulled.seconds / floor, "x", Target::None);
    figure("  peak memory", mebibytes(pulled.peak_bytes), "MiB", Target::AtMost(150.0));
}

fn pull(registry: &Registry, images: &[&Image]) -> Pulled {
    images.iter().for_each(|image| peers::calm(image));
    let references: Vec<String> = images.iter().map(|image| registry.reference(image)).collect();
    child::pull(&references)
}

fn median_pull(registry: &Registry, image: &Image) -> Pulled {
    let mut runs: Vec<Pulled> = (0..RUNS).map(|_| pull(registry, &[image])).collect();
    runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    runs.swap_remove(RUNS / 2)
}

fn median_floor(image: &Image) -> f64 {
    let run = |_| {
        let folder = common::folder();
        peers::calm(image);
        peers::floor(image, folder.path()).as_secs_f64()
    };
    let mut runs: Vec<f64> = (0..RUNS).map(run).collect();
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
