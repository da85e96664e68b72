//! The sets of `examples/`, booted: their own files, with the test's registry, addresses and ports in
//! place of theirs, and stand-ins for the programs of their images.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::oci::Image;
use crate::host::{Host, Net, is_ready};
use crate::images::{busybox_config, busybox_with};
use crate::{fetch, free_port};

/// Serves a page, or what the server says that it is to pass requests on to.
const NGINX: &str = r#"#!/bin/sh
upstream=$(grep -o 'server [0-9.]*' /etc/nginx/conf.d/default.conf 2>/dev/null | head -n 1)
if [ -n "$upstream" ]; then
    mkdir -p /proxy/cgi-bin
    echo "${upstream#server }" > /proxy/upstream
    busybox cp -p /bin/pass /proxy/cgi-bin/index.cgi
    exec httpd -f -p 80 -h /proxy
fi
echo "page of $(cat /etc/hostname)" > /www/index.html
exec httpd -f -p 80 -h /www
"#;

/// Answers one request with what a server answers.
const PASS: &str = r#"#!/bin/sh
echo
exec wget -q -O - "http://$(cat /proxy/upstream)/"
"#;

/// Fails once to install, and else succeeds.
const CARGO: &str = r#"#!/bin/sh
case $1 in
    new) mkdir "$3" ;;
    test) pwd ;;
    install) mkdir -p /work; test -e /work/tried || { touch /work/tried; sync; exit 101; } ;;
esac
"#;

/// Puts an example's files into the manifests folder, all at once.
fn apply(host: &Host, example: &str, replacements: &[(&str, &str)]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let mut text = std::fs::read_to_string(&path).unwrap();
            for (theirs, ours) in replacements {
                text = text.replace(theirs, ours);
            }
            host.write_text(path.file_name().unwrap().to_str().unwrap(), &text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_web_tier_serves_its_page_through_its_entrance() {
    let mut host = Host::start(Net::Bridge).await;
    let mut config = busybox_config();
    config["Cmd"] = json!(["nginx", "-g", "daemon off;"]);
    let nginx = busybox_with(
        &[("bin/nginx", NGINX), ("bin/pass", PASS), ("etc/nginx/conf.d/default.conf", "")],
        config,
    );
    host.registry.push(&nginx, "library/nginx", "1.29").await;
    host.registry.push(&busybox_with(&[], busybox_config()), "library/redis", "8").await;
    let (registry, port) = (host.reference(""), free_port());
    let replacements = [
        ("docker.io/", registry.as_str()),
        ("10.63.0.", &host.network()),
        ("host: 8000", &format!("host: {port}")),
    ];
    apply(&host, "web-tier", &replacements);
    let vms =
        tokio::join!(host.ready("front"), host.ready("app-1"), host.ready("app-2"), host.ready("cache"));
    let addresses = [&vms.0, &vms.1, &vms.2, &vms.3].map(|vm| vm["status"]["addresses"][0].clone());
    assert_eq!(addresses, [20, 21, 22, 30].map(|last| Value::from(format!("{}{last}", host.network()))));
    assert!(fetch(&format!("127.0.0.1:{port}")).contains("page of app-1"));
    for name in ["nginx", "redis"] {
        host.until("images", name, is_ready).await;
    }
    host.assert_host_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ci_runners_end_as_their_run_policies_say() {
    let mut host = Host::start(Net::User).await;
    let rust: Image = busybox_with(&[("bin/cargo", CARGO)], busybox_config());
    host.registry.push(&rust, "library/rust", "1.90-slim").await;
    apply(&host, "ci-runners", &[("docker.io/", &host.reference(""))]);
    let ended = |vm: &Value| vm["status"]["phase"] == "Stopped";
    let check = host.until("vms", "check", ended).await;
    assert_eq!(check["status"]["lastExit"]["code"], 0, "{check}");
    let log = host.vmlet(&["logs", "-n", "ci", "check"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("/work/sample"), "{log:?}");
    let fetch = host.until("vms", "fetch", ended).await;
    assert_eq!((&fetch["status"]["lastExit"]["code"], &fetch["status"]["restarts"]), (&json!(0), &json!(1)));
    let spare = host.get("vms", "spare").await;
    assert_eq!((&spare["status"]["phase"], &spare["status"]["pid"]), (&json!("Stopped"), &Value::Null));
    host.assert_host_is_clean().await;
}
