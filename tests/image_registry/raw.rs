//! Answers that no web server gives, written to the socket as they are.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// What every request is answered with: a start, and then the same piece again and again, until nobody listens.
#[derive(Clone, Default)]
struct Answer {
    start: Vec<u8>,
    again: Vec<u8>,
    pause: Duration,
}

fn answer(start: &str) -> Answer {
    Answer { start: start.into(), ..Answer::default() }
}

fn endless(start: &str, again: impl Into<Vec<u8>>, pause: u64) -> Answer {
    Answer { start: start.into(), again: again.into(), pause: Duration::from_millis(pause) }
}

/// Serves it, and returns the address.
async fn serve(answer: Answer) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let mut sent = stream.write_all(&answer.start).await;
                while sent.is_ok() && !answer.again.is_empty() {
                    tokio::time::sleep(answer.pause).await;
                    sent = stream.write_all(&answer.again).await;
                }
            });
        }
    });
    address
}

/// The error after two such answers.
async fn error_of(what: &str, answer: Answer, settings: Settings) -> ImageError {
    let settings = Settings { attempts: 2, ..settings };
    let state = tempfile::tempdir().unwrap();
    let store = ImageStore::open(state.path(), settings).unwrap();
    let source = Source::Oci(format!("{}/app:1", serve(answer).await));
    println!("{what}");
    limited(store.resolve(&source)).await.unwrap_err()
}

#[tokio::test]
async fn nonsense_costs_a_failed_attempt() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let with = |headers: &str| answer(&format!("{ok}{headers}"));
    let chunked = format!("{ok}transfer-encoding: chunked\r\n\r\n");
    let cases = [
        ("no HTTP", answer("SSH-2.0-OpenSSH_9.2\r\n")),
        ("nothing", answer("")),
        ("headers without end", endless(ok, format!("x-pad: {}\r\n", "a".repeat(8000)), 0)),
        ("one header without end", endless(&format!("{ok}x-pad: "), vec![b'a'; 8000], 0)),
        ("headers that drip", endless(ok, "a", 30)),
        ("hints without end", endless("", "HTTP/1.1 103 Early Hints\r\n\r\n", 1)),
        ("less than promised", with("content-length: 1000\r\n\r\n{}")),
        ("two lengths", with("content-length: 5\r\ncontent-length: 6\r\n\r\n{}    ")),
        ("no length", with("content-length: -1\r\n\r\n{}")),
        ("a chunk beyond 64 bits", answer(&format!("{chunked}FFFFFFFFFFFFFFFFF\r\n{{}}"))),
        ("a chunk that is cut", answer(&format!("{chunked}FFFF\r\n{{}}"))),
        ("a chunk's extension without end", endless(&format!("{chunked}1;"), vec![b'x'; 8000], 0)),
        ("trailers without end", endless(&format!("{chunked}0\r\n"), "x-pad: aaaaaaaaaaaaa\r\n", 0)),
        // Fast enough for each stretch of time, and still hours for a whole manifest.
        ("a body that drips", endless(&format!("{ok}\r\n"), vec![b' '; 500], 100)),
    ];
    for (what, answer) in cases {
        let settings = Settings { connect_timeout: Duration::from_millis(700), ..impatient() };
        let error = error_of(what, answer, settings).await;
        assert_eq!((error.reason, error.transient), ("RegistryUnavailable", true), "{what}: {error}");
    }
}

#[tokio::test]
async fn lengths_are_believed_only_as_far_as_limits_go() {
    let huge = answer("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{}");
    let error = error_of("a length", huge, quick()).await;
    assert!(error.message.contains("manifest_bytes"), "{error}");
    // What is asked for plain is taken as it is, however it calls itself.
    let packed = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x10";
    let error = error_of("packed", answer(packed), quick()).await;
    assert_eq!(error.reason, "InvalidImage", "{error}");
}

#[tokio::test]
async fn redirects_lead_to_the_web_and_nowhere_else() {
    let places = [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1:70/x",
        "data:application/json,{}",
        "http://169.254.169.254/latest/meta-data",
        "http://registry.example/v2/",
        "http://[fe80::1]/",
        "http://0x7f.1.example/",
        "//[",
        "",
    ];
    for place in places {
        let text = format!("HTTP/1.1 307 Go\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
        let error = error_of(place, answer(&text), quick()).await;
        // An empty one is the same place again.
        let end = if place.is_empty() { "more than 5 redirects" } else { "redirects to" };
        assert!(error.message.contains(end), "{place}: {error}");
        assert_eq!(error.reason, "RegistryUnavailable", "{place}: {error}");
    }
}

#[tokio::test]
async fn token_services_are_on_the_web_and_nowhere_else() {
    let many = "Basic, Negotiate, Digest qop=auth, ".repeat(500);
    for realm in ["file:///etc/passwd", "http://169.254.169.254/token", "/token", "data:,{}"] {
        let challenge = format!("{many}Bearer realm=\"{realm}\"");
        let text = format!("HTTP/1.1 401 No\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\n\r\n");
        let error = error_of(realm, answer(&text), quick()).await;
        assert!(error.message.contains("its token service"), "{realm}: {error}");
        assert_eq!(error.reason, "Unauthorized", "{realm}: {error}");
    }
}
