//! OCI layouts and docker archives, made by others and by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use vmlet::image::{LayoutAt, Source};

use super::common::oci::{Image, Item, Layer, Sparse, digest, gzip, noise, tar};
use super::common::tree::{assert_same, read_disk, run};
use super::{Setup, copy_tree, image};

pub(crate) fn layout(path: PathBuf) -> Source {
    Source::OciLayout(Box::new(LayoutAt { path, reference: None }))
}

fn named(path: PathBuf, reference: &str) -> Source {
    Source::OciLayout(Box::new(LayoutAt { path, reference: Some(reference.to_owned()) }))
}

fn skopeo(from: &str, to: &str) {
    run("skopeo", "skopeo", &["--insecure-policy", "copy", "-q", from, to]);
}

/// The digest of an image's config: its ID in docker's words.
fn id(image: &Image) -> String {
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_image_in_every_wrapping_is_one_disk() {
    let setup = Setup::new();
    let image = image("hello");
    image.write_layout(&setup.path("layout"), "app:1");
    let from = format!("oci:{}:app:1", setup.path("layout").display());
    let to = |transport: &str, name: &str| {
        skopeo(&from, &format!("{transport}:{}:app:1", setup.path(name).display()));
        setup.path(name)
    };
    let oci = [setup.path("layout"), to("oci", "copy"), to("oci-archive", "oci.tar")];
    let docker = to("docker-archive", "docker.tar");
    let zipped = [
        setup.write("oci.tar.gz", gzip(&fs::read(&oci[2]).unwrap())),
        setup.write("oci.tar.zst", zstd::encode_all(&fs::read(&oci[2]).unwrap()[..], 1).unwrap()),
    ];
    let docker_zipped = setup.write("docker.tgz", gzip(&fs::read(&docker).unwrap()));
    let unpacked = setup.path("unpacked");
    fs::create_dir(&unpacked).unwrap();
    // The legacy part has symlinks; the part that counts has none.
    run("tar", "tar", &["-xf", docker.to_str().unwrap(), "-C", unpacked.to_str().unwrap()]);

    let expected = read_disk(&setup.get(&layout(setup.path("layout"))).await.path);
    assert!(expected.contains_key(&b"hard"[..]) && !expected.contains_key(&b"old"[..]));
    for path in oci.into_iter().chain(zipped) {
        for source in [layout(path.clone()), named(path.clone(), "app:1")] {
            let disk = setup.get(&source).await;
            assert_eq!(disk.digest.as_str(), image.digest(), "{source}");
            assert_eq!((disk.config.entrypoint, disk.kernel), (vec!["/bin/sh".to_owned()], None));
        }
    }
    for path in [docker, docker_zipped, unpacked] {
        for source in
            [layout(path.clone()), named(path.clone(), "app:1"), named(path, "docker.io/library/app:1")]
        {
            let disk = setup.get(&source).await;
            assert_eq!(disk.config.user.as_deref(), Some("7"));
            assert_same(&read_disk(&disk.path), &expected);
        }
    }
}

/// A docker archive as docker wrote it before version 25: a folder a layer, and symlinks for layers that
/// are there already.
fn old_docker_save(image: &Image, layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = &image.blobs[&id(image)];
    let name = format!("{}.json", id(image).trim_start_matches("sha256:"));
    let mut items = vec![Item::file(&name, config)];
    let mut seen = BTreeMap::new();
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = format!("{number:064x}/layer.tar");
        items.push(Item::dir(format!("{number:064x}/")));
        items.push(match seen.get(layer) {
            Some(earlier) => Item::symlink(&path, format!("../{earlier}")),
            None => Item::file(&path, layer),
        });
        seen.entry(layer).or_insert_with(|| path.clone());
        names.push(path);
    }
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": names}]);
    items.push(Item::file("manifest.json", manifest.to_string()));
    items.push(Item::file("repositories", "{}"));
    tar(&items)
}

#[tokio::test]
async fn what_old_and_new_dockers_save_is_understood() {
    let setup = Setup::new();
    let layers = [tar(&[Item::file("a", "1")]), tar(&[Item::file("b", "2")]), tar(&[Item::file("a", "1")])];
    let image = Image::new(layers.iter().map(|layer| Layer::plain(layer)).collect());
    let old = setup.write("old.tar", old_docker_save(&image, &layers, &["app:1", "app:latest"]));
    let disk = setup.get(&named(old, "app:latest")).await;
    assert_eq!(disk.digest.as_str(), id(&image));
    let tree = read_disk(&disk.path);

    // A layout, with docker's names for people beside it.
    let new = setup.path("new");
    image.write_layout(&new, "1");
    let index = fs::read_to_string(new.join("index.json")).unwrap();
    let index = index.replace(
        "\"org.opencontainers.image.ref.name\"",
        "\"io.containerd.image.name\":\"docker.io/library/app:1\",\"org.opencontainers.image.ref.name\"",
    );
    fs::write(new.join("index.json"), index).unwrap();
    let blob = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    let names: Vec<String> = layers.iter().map(|layer| blob(&digest(layer))).collect();
    let manifest = json!([{"Config": blob(&id(&image)), "RepoTags": ["app:1"], "Layers": names}]);
    fs::write(new.join("manifest.json"), manifest.to_string()).unwrap();
    for name in ["app:1", "1", "docker.io/library/app:1"] {
        let disk = setup.get(&named(new.clone(), name)).await;
        assert_eq!(disk.digest.as_str(), image.digest(), "{name}");
        assert_same(&read_disk(&disk.path), &tree);
    }
    // Without the layout's index it is a docker archive like any other.
    fs::remove_file(new.join("index.json")).unwrap();
    assert_eq!(setup.get(&layout(new)).await.digest.as_str(), id(&image));
}

#[tokio::test]
async fn of_several_images_one_is_named() {
    let setup = Setup::new();
    let path = setup.path("layout");
    for content in ["one", "two"] {
        image(content).write_layout(&setup.path(content), content);
        skopeo(
            &format!("oci:{}:{content}", setup.path(content).display()),
            &format!("oci:{}:{content}", path.display()),
        );
    }
    assert_eq!(setup.digest(&named(path.clone(), "two")).await.as_str(), image("two").digest());
    let unclear = setup.refused(&layout(path.clone())).await;
    assert!(unclear.contains("several images; set `reference` to one of [one, two]"), "{unclear}");
    let unknown = setup.refused(&named(path, "three")).await;
    assert!(unknown.contains("no image \"three\", only [one, two]"), "{unknown}");
}

/// A layout of an image that is found through `depth` indexes, the innermost naming these variants.
fn indexed(setup: &Setup, name: &str, image: &Image, depth: usize, variants: &[&str]) -> PathBuf {
    let path = setup.path(name);
    image.write_layout(&path, "1");
    let blob = |content: &[u8]| {
        let digest = digest(content);
        fs::write(path.join("blobs/sha256").join(digest.trim_start_matches("sha256:")), content).unwrap();
        json!({"digest": digest, "size": content.len()})
    };
    let entry = |variant: &&str| {
        let digest = if *variant == "v9" { digest(b"nothing") } else { image.digest() };
        let mut platform = json!({"os": "linux", "architecture": "amd64"});
        if !variant.is_empty() {
            platform["variant"] = json!(variant);
        }
        json!({"digest": digest, "size": 1, "platform": platform})
    };
    let attestation =
        json!({"digest": digest(b"x"), "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}});
    let manifests: Vec<Value> = variants.iter().map(entry).chain([attestation]).collect();
    let mut index = json!({"schemaVersion": 2, "manifests": manifests});
    for _ in 1..depth {
        let mut inner = blob(index.to_string().as_bytes());
        inner["platform"] = json!({"os": "linux", "architecture": "amd64"});
        index = json!({"schemaVersion": 2, "manifests": [inner]});
    }
    fs::write(path.join("index.json"), index.to_string()).unwrap();
    path
}

#[tokio::test]
async fn platforms_and_indexes_in_indexes_are_followed() {
    let setup = Setup::new();
    let image = image("hello");
    for (name, depth, variants) in
        [("plain", 1, &["", "v9"][..]), ("deep", 5, &["v1"]), ("last", 2, &["v9", "v1"])]
    {
        let found = setup.digest(&layout(indexed(&setup, name, &image, depth, variants))).await;
        assert_eq!(found.as_str(), image.digest(), "{name}");
    }
    let refused = setup.refused(&layout(indexed(&setup, "deeper", &image, 7, &["v1"]))).await;
    assert!(refused.contains("more than 4 indexes"), "{refused}");
    let refused = setup.refused(&layout(indexed(&setup, "foreign", &image, 2, &["v9"]))).await;
    assert!(refused.contains("linux/amd64/v9"), "{refused}");
}

#[tokio::test]
async fn a_pinned_image_is_found_whatever_the_names_say_now() {
    let setup = Setup::new();
    let path = setup.path("layout");
    image("one").write_layout(&path, "1");
    let source = named(path.clone(), "1");
    let one = setup.digest(&source).await;
    image("two").write_layout(&path, "1");
    assert_eq!(setup.get_pinned(&source, &one).await.unwrap().digest, one);

    let image = image("three");
    let archive = setup.write("old.tar", old_docker_save(&image, &[], &["app:1"]));
    let refused = setup.get_pinned(&layout(archive), &one).await.unwrap_err();
    assert_eq!(refused.reason, "InvalidImage", "{refused}");
    let layers = [tar(&[Item::file("a", "1")])];
    let plain = Image::new(vec![Layer::plain(&layers[0])]);
    let archive = setup.write("new.tar", old_docker_save(&plain, &layers, &["app:1"]));
    let refused = setup.get_pinned(&layout(archive), &one).await.unwrap_err();
    assert!(refused.reason == "NotFound" && refused.message.contains("not there any more"), "{refused}");
}

#[tokio::test]
async fn layouts_that_lie_cost_an_error() {
    let setup = Setup::new();
    let layer = Layer::gzip(&tar(&[Item::file("big", noise(1, 50_000))]));
    let layer_name = digest(&layer.blob);
    let good = Image::new(vec![layer]);
    good.write_layout(&setup.path("good"), "1");
    let blob = |path: &std::path::Path, digest: &str| {
        path.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    };
    let broken = |name: &str, breaking: &dyn Fn(&std::path::Path)| {
        let path = setup.path(name);
        copy_tree(&setup.path("good"), &path);
        breaking(&path);
        layout(path)
    };
    let layer_at = |path: &std::path::Path| blob(path, &layer_name);
    let replace = |path: &std::path::Path, from: &str, to: &str| {
        let index = path.join("index.json");
        fs::write(&index, fs::read_to_string(&index).unwrap().replace(from, to)).unwrap();
    };
    let cases: Vec<(&str, Source, &str)> = vec![
        ("missing", broken("missing", &|path| fs::remove_file(layer_at(path)).unwrap()), "is missing"),
        ("short", broken("short", &|path| fs::write(layer_at(path), "x").unwrap()), "is of 1 bytes, and"),
        (
            "damaged",
            broken("damaged", &|path| {
                let mut bytes = fs::read(layer_at(path)).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(layer_at(path), bytes).unwrap();
            }),
            "",
        ),
        (
            "manifest",
            broken("manifest", &|path| fs::write(blob(path, &good.digest()), "{}").unwrap()),
            "is damaged: its content has digest",
        ),
        (
            "symlink",
            broken("symlink", &|path| {
                fs::rename(layer_at(path), path.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink("../../elsewhere", layer_at(path)).unwrap();
            }),
            "symbolic link",
        ),
        (
            "linked folder",
            broken("linked-folder", &|path| {
                fs::rename(path.join("blobs"), path.join("real")).unwrap();
                std::os::unix::fs::symlink("real", path.join("blobs")).unwrap();
            }),
            "symbolic link",
        ),
        (
            "fifo",
            broken("fifo", &|path| {
                fs::remove_file(layer_at(path)).unwrap();
                run("mkfifo", "coreutils", &[layer_at(path).to_str().unwrap()]);
            }),
            "not a plain file",
        ),
        (
            "traversal",
            broken("traversal", &|path| replace(path, &good.digest(), "sha256:../../../../etc/passwd")),
            "is not a sha256 digest",
        ),
        (
            "huge",
            broken("huge", &|path| fs::write(path.join("index.json"), vec![b' '; 5 << 20]).unwrap()),
            "exceeds the limit",
        ),
        ("nothing", broken("nothing", &|path| fs::remove_file(path.join("index.json")).unwrap()), "neither"),
        (
            "empty",
            broken("empty", &|path| fs::write(path.join("index.json"), r#"{"manifests":[]}"#).unwrap()),
            "names no image",
        ),
        ("device", layout("/dev/zero".into()), "neither a folder nor a file"),
        ("absent", layout(setup.path("absent")), "does not exist"),
        ("no tar", layout(setup.write("text", "hello\n".repeat(1000))), ""),
    ];
    for (name, source, expected) in cases {
        let error = setup.refused(&source).await;
        assert!(error.contains(expected), "{name}: {error}");
    }
    let manifest = String::from_utf8(good.manifest.clone()).unwrap();
    let foreign = manifest.replace("image.layer.v1.tar+gzip", "image.layer.nondistributable.v1.tar+gzip");
    let foreign = Image { manifest: foreign.into_bytes(), ..good.clone() };
    foreign.write_layout(&setup.path("foreign"), "1");
    let error = setup.refused(&layout(setup.path("foreign"))).await;
    assert!(error.contains("is foreign"), "{error}");
}

#[tokio::test]
async fn archives_that_lie_cost_an_error() {
    let setup = Setup::new();
    let layers = [tar(&[Item::file("a", "1")])];
    let image = Image::new(vec![Layer::plain(&layers[0])]);
    let config = image.blobs[&id(&image)].clone();
    let archive = |name: &str, config_name: &str, layer: Item| {
        let manifest = json!([{"Config": config_name, "Layers": ["layer.tar"]}]).to_string();
        let items = [Item::file("manifest.json", manifest), Item::file("config.json", &config), layer];
        layout(setup.write(name, tar(&items)))
    };
    let good = Item::file("layer.tar", &layers[0]);
    setup.get(&archive("good.tar", "./config.json", good.clone())).await;
    setup.store_is_emptied().await;
    let whole = fs::read(setup.path("good.tar")).unwrap();
    let cut = layout(setup.write("cut.tar", &whole[..whole.len() - 1536]));
    let other = tar(&[Item::file("a", "2")]);
    let sparse = Item::sparse("layer.tar", Sparse::Old, 1024, &[(0, &[7; 512])]);
    let cases = [
        ("outside", archive("outside.tar", "../../etc/passwd", good.clone()), "leads out of the image"),
        ("absent", archive("absent.tar", "none.json", good.clone()), "\"none.json\" is missing"),
        ("renamed", archive("renamed.tar", &format!("{}.json", "0".repeat(64)), good), "is missing"),
        ("sparse", archive("sparse.tar", "config.json", sparse), "not a plain file"),
        (
            "device",
            archive("device.tar", "config.json", Item::char_device("layer.tar", 1, 5)),
            "not a plain file",
        ),
        ("host", archive("host.tar", "config.json", Item::symlink("layer.tar", "/etc/passwd")), "is missing"),
        (
            "above",
            archive("above.tar", "config.json", Item::symlink("layer.tar", "../../x")),
            "not a plain file",
        ),
        ("circle", archive("circle.tar", "config.json", Item::symlink("layer.tar", "layer.tar")), "circle"),
        (
            "hard",
            archive("hard.tar", "config.json", Item::hardlink("layer.tar", "/etc/passwd")),
            "is missing",
        ),
        (
            "other",
            archive("other.tar", "config.json", Item::file("layer.tar", other)),
            "its content has digest",
        ),
        (
            "name",
            archive("name.tar", "config.json", Item::file("../layer.tar", "x")),
            "leads out of the archive",
        ),
        ("cut", cut, "breaks off"),
    ];
    for (name, source, expected) in cases {
        let error = setup.refused(&source).await;
        assert!(error.contains(expected), "{name}: {error}");
    }
}
