//! What the server answers when nothing goes wrong, over one kept-alive connection where that matters.

use contbox::listener::RecoverableListener;
use file_server::{server, synthetic};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;

struct Running {
    address: SocketAddr,
    root: PathBuf,
}

impl Running {
    async fn start(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("file-server-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server::serve(RecoverableListener::unprotected(listener), root.clone(), None));
        Self { address, root }
    }

    /// Sends all of `request`, half-closes, and returns everything the server says before it closes.
    async fn converse(&self, request: impl Into<Vec<u8>>) -> Vec<u8> {
        let (address, request) = (self.address, request.into());
        let talk = move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&request).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            said
        };
        tokio::task::spawn_blocking(talk).await.unwrap()
    }

    /// One request; its status, head and body.
    async fn request(&self, head: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut request = format!("{head}\r\nHost: t\r\n\r\n").into_bytes();
        request.extend_from_slice(body);
        let said = self.converse(request).await;
        let end = said.windows(4).position(|four| four == b"\r\n\r\n").expect("a response head") + 4;
        let head = String::from_utf8(said[..end].to_vec()).unwrap();
        (head[9..12].parse().unwrap(), head, said[end..].to_vec())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn content(seed: u64, from: usize, to: usize) -> Vec<u8> {
    let mut bytes = vec![0; to - from];
    synthetic::fill(seed, from as u64, &mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_ranges_of_them_are_served_to_half_closed_clients() {
    let running = Running::start("ranges").await;
    let stored = content(9, 0, 100_000);
    std::fs::write(running.root.join("file"), &stored).unwrap();
    let (status, _, body) = running.request("GET /file HTTP/1.1", b"").await;
    assert!(status == 200 && body == stored);
    let (status, head, body) = running.request("GET /file HTTP/1.1\r\nRange: bytes=70000-70009", b"").await;
    assert!(head.contains("content-range: bytes 70000-70009/100000\r\n"), "{head}");
    assert_eq!((status, body.as_slice()), (206, &stored[70000..70010]));
    let (status, head, _) = running.request("GET /file HTTP/1.1\r\nRange: bytes=100000-", b"").await;
    assert!(status == 416 && head.contains("content-range: bytes */100000\r\n"), "{head}");
    let (status, head, body) = running.request("HEAD /file HTTP/1.1", b"").await;
    assert!(status == 200 && body.is_empty() && head.contains("content-length: 100000\r\n"), "{head}");
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (status, ..) = running.request(&format!("GET /file HTTP/1.1\r\nIf-None-Match: {etag}"), b"").await;
    assert_eq!(status, 304);
    assert_eq!(running.request("GET /nothing HTTP/1.1", b"").await.0, 404);
    assert_eq!(running.request("GET /../file HTTP/1.1", b"").await.0, 404);
    assert_eq!(running.request("DELETE /file HTTP/1.1", b"").await.0, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_arrive_whole_and_in_parts() {
    let running = Running::start("uploads").await;
    let sent = content(3, 0, 50_000);
    let length = |bytes: &[u8]| format!("Content-Length: {}", bytes.len());
    let (status, _, said) = running.request(&format!("PUT /a/b HTTP/1.1\r\n{}", length(&sent)), &sent).await;
    assert_eq!((status, said.as_slice()), (201, &b"50000\n"[..]));
    assert_eq!(std::fs::read(running.root.join("a/b")).unwrap(), sent);

    let (first, second) = sent.split_at(20_000);
    let head = format!("PUT /parts HTTP/1.1\r\n{}\r\nContent-Range: bytes 0-19999/50000", length(first));
    assert_eq!(running.request(&head, first).await.0, 201);
    assert!(!running.root.join("parts").exists(), "a part is not the file");
    let head = format!("PUT /parts HTTP/1.1\r\n{}\r\nContent-Range: bytes 20001-50000/50001", length(second));
    assert_eq!(running.request(&head, second).await.0, 416);
    let head = format!("PUT /parts HTTP/1.1\r\n{}\r\nContent-Range: bytes 20000-49999/50000", length(second));
    let (status, _, said) = running.request(&head, second).await;
    assert_eq!((status, said.as_slice()), (201, &b"50000\n"[..]));
    assert_eq!(std::fs::read(running.root.join("parts")).unwrap(), sent);
    // The last part once more, as after a stop between the rename and the response.
    assert_eq!(running.request(&head, second).await.0, 201);
    assert_eq!(std::fs::read(running.root.join("parts")).unwrap(), sent);

    let chunked = b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n";
    assert_eq!(running.request("PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked", chunked).await.0, 201);
    assert_eq!(std::fs::read(running.root.join("c")).unwrap(), b"hello!");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order_and_broken_ones_refused() {
    let running = Running::start("pipelined").await;
    let said = running
        .converse(
            "GET /synthetic/1/3 HTTP/1.1\r\nHost: t\r\n\r\nPUT /x HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi\
             HEAD /synthetic/1/3 HTTP/1.1\r\nHost: t\r\n\r\nGET /x HTTP/1.1\r\nHost: t\r\n\r\nbroken\r\n\r\n",
        )
        .await;
    let said = String::from_utf8_lossy(&said);
    let statuses: Vec<&str> = said.match_indices("HTTP/1.1 ").map(|(at, _)| &said[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "201", "200", "200", "400"], "{said}");
    assert!(said.contains("\r\n\r\nhiHTTP/1.1 400"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_up_before_its_address_arrives() {
    // TEST-NET-1: nobody's address.
    assert!(server::listen("192.0.2.77:0".parse().unwrap()).is_ok());
    assert!(server::listen("[2001:db8::77]:0".parse().unwrap()).is_ok());
}
