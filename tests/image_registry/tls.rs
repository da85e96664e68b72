//! TLS: authorities of one's own, client certificates, proxies.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::common::elsewhere;
use crate::common::tls::Authority;

fn registries(host: &str, settings: &[String]) -> String {
    format!("registries:\n  {host}: {{{}}}\n", settings.join(", "))
}

fn settings(host: &str, entries: &[String]) -> Settings {
    let text = registries(host, entries);
    let registries = Registries::parse(Path::new("registries.yaml"), text.as_bytes()).unwrap();
    Settings { registries, ..quick() }
}

/// Another name of this machine, which is spoken to over plain http; so the registry is asked as a mirror.
async fn resolve(
    image: &Image,
    tls: Arc<rustls::ServerConfig>,
    entries: &[String],
) -> Result<Digest, ImageError> {
    let registry = ScriptedRegistry::start_with(image, Some(tls), |_, _| None, |_, _| Reply::Serve).await;
    let host = format!("localhost:{}", registry.address().port());
    let mut settings = settings(&host, entries);
    settings.attempts = 1;
    let text = format!(
        "{}  registry.example: {{mirrors: ['https://{host}']}}\n  registry.invalid: {{}}\n",
        registries(&host, entries)
    );
    settings.registries = Registries::parse(Path::new("registries.yaml"), text.as_bytes()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let store = ImageStore::open(state.path(), settings)?;
    limited(store.resolve(&Source::Oci("registry.example/app:1".to_owned()))).await
}

#[tokio::test]
async fn authorities_of_ones_own_are_trusted_where_configured() {
    let (image, _) = image();
    let (ours, other) = (Authority::new(), Authority::new());
    let server = ours.server("localhost", None);
    let digest: Digest = image.digest().parse().unwrap();
    assert_eq!(resolve(&image, server.clone(), &[ours.ca()]).await.unwrap(), digest);
    assert!(resolve(&image, server.clone(), &[other.ca()]).await.is_err());
    assert!(resolve(&image, server, &[]).await.is_err());
    let misnamed = ours.server("elsewhere.example", None);
    assert!(resolve(&image, misnamed, &[ours.ca()]).await.is_err());
}

#[tokio::test]
async fn clients_prove_who_they_are() {
    let (image, _) = image();
    let (ours, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let server = ours.server("localhost", Some(&clients));
    let digest: Digest = image.digest().parse().unwrap();
    assert_eq!(resolve(&image, server.clone(), &[ours.ca(), clients.client()]).await.unwrap(), digest);
    assert!(resolve(&image, server.clone(), &[ours.ca(), other.client()]).await.is_err());
    assert!(resolve(&image, server, &[ours.ca()]).await.is_err());
}

#[tokio::test]
async fn bad_files_are_named_at_the_start() {
    let ours = Authority::new();
    let key = ours.folder.path().join("ca.pem");
    let absent = "/absent/ca.pem";
    let pair = format!("clientCertificate: {{certFile: {0}, keyFile: {0}}}", key.display());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    for (entry, words) in [
        (format!("caFile: {absent}"), absent.to_owned()),
        (format!("caFile: {}", manifest.display()), "no certificate in PEM form".to_owned()),
        (pair, key.display().to_string()),
    ] {
        let state = tempfile::tempdir().unwrap();
        let error = ImageStore::open(state.path(), settings("a.lan", &[entry])).err().unwrap();
        assert!(error.message.contains(&words), "{error}");
    }
}

/// A proxy that knows where `registry.example` is, and notes whom it was asked for.
async fn proxy(registry: std::net::SocketAddr) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let notes = asked.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let notes = notes.clone();
            tokio::spawn(async move {
                let mut client = tokio::io::BufReader::new(client);
                let mut line = String::new();
                client.read_line(&mut line).await.unwrap();
                notes.lock().unwrap().push(line.trim().to_owned());
                let mut header = String::from("-");
                while !header.trim().is_empty() {
                    header.clear();
                    client.read_line(&mut header).await.unwrap();
                }
                let mut server = tokio::net::TcpStream::connect(registry).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                let _ = client.read_u8().await;
            });
        }
    });
    (url, asked)
}

#[tokio::test]
async fn proxies_are_used_except_for_this_machine() {
    let (image, _) = image();
    let ours = Authority::new();
    let tls = ours.server("registry.example", None);
    let registry = ScriptedRegistry::start_with(&image, Some(tls), |_, _| None, |_, _| Reply::Serve).await;
    let file = ours.folder.path().join("registries.yaml");
    std::fs::write(&file, registries("registry.example", &[ours.ca()])).unwrap();
    let (proxy, asked) = proxy(registry.address()).await;
    let reference = ("REFERENCE", "registry.example/app:1");
    let file = ("REGISTRIES", file.to_str().unwrap());
    elsewhere("access::pulled_elsewhere", &[("HTTPS_PROXY", &proxy), reference, file]).await;
    assert_eq!(asked.lock().unwrap()[0], "CONNECT registry.example:443 HTTP/1.1");

    let local = ScriptedRegistry::start(&image, |_, _| Reply::Serve).await;
    let dead = "http://127.0.0.1:1";
    let local = ("REFERENCE", &*local.reference());
    elsewhere("access::pulled_elsewhere", &[("HTTP_PROXY", dead), ("ALL_PROXY", dead), local]).await;
}
