//! Handshakes that stop half way, come in pieces, or are none.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use interceptor_tests::run;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use super::{Siege, Upstream, until_end, write};
use crate::{support::ALLOW_ALL, tls::web};

const REQUEST: &[u8] = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A client that believes our certificates.
fn client(siege: &Siege) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    let own = siege.daemon.state().join("ca/ca.pem");
    roots
        .add(CertificateDer::from_pem_file(own).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

/// What a client says first.
fn hello(tls: &mut ClientConnection) -> Vec<u8> {
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    hello
}

/// The same handshake message in records of `size` bytes each.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|part| [&[0x16, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
        .collect()
}

/// Goes on behind the hello, asks and is answered.
#[track_caller]
fn answers(tls: ClientConnection, stream: TcpStream) {
    let mut tls = StreamOwned::new(tls, stream);
    tls.write_all(REQUEST).unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer);
    assert!(
        answer.ends_with(b"GET localhost /echo\n"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

fn connect(siege: &Siege) -> TcpStream {
    let stream = siege.agent.connect(web().good).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(super::IN_TIME)).unwrap();
    stream
}

#[test]
fn handshakes_that_stop_or_come_in_pieces() {
    let siege = Siege::start(ALLOW_ALL);
    siege.hold(&[
        ("a ClientHello byte by byte", |siege| {
            let (mut tls, mut stream) = (client(siege), connect(siege));
            for byte in hello(&mut tls) {
                stream.write_all(&[byte]).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
            answers(tls, stream);
        }),
        ("a ClientHello in records of a byte each", |siege| {
            for size in [1, 7, 100] {
                let (mut tls, mut stream) = (client(siege), connect(siege));
                let hello = hello(&mut tls);
                stream.write_all(&in_records(&hello, size)).unwrap();
                answers(tls, stream);
            }
        }),
        ("a ClientHello that never ends", |siege| {
            let stream = connect(siege);
            siege.expect(&stream, "no whole ClientHello within");
            let hello = hello(&mut client(siege));
            assert!(write(&stream, &hello[..hello.len() - 1]));
            until_end(&stream);
        }),
        ("half of a record's head", |siege| {
            let stream = connect(siege);
            siege.expect(&stream, "too few to know a protocol by");
            assert!(write(&stream, b"\x16\x03\x01"));
            until_end(&stream);
        }),
        ("a ClientHello that is too large", |siege| {
            let stream = connect(siege);
            siege.expect(&stream, "tls_refused");
            let mut large = vec![1, 0, 0xFF, 0xFF];
            large.extend_from_slice(&[3; 0xFFFF]);
            write(
                &stream,
                &in_records(&[&[0; 5], &large[..]].concat(), 16_000),
            );
            assert!(until_end(&stream).starts_with(&[0x15, 3]));
        }),
        ("a ClientHello full of nothing", |siege| {
            let stream = connect(siege);
            siege.expect(&stream, "tls_refused");
            write(
                &stream,
                &in_records(&[&[0; 5], &[1, 0, 1, 0][..], &[0xAA; 256]].concat(), 300),
            );
            assert!(until_end(&stream).starts_with(&[0x15, 3]));
        }),
        ("records with nothing in them, without end", |siege| {
            let mut stream = connect(siege);
            siege.expect(&stream, "tls_refused");
            let _ = stream.write_all(&[0x16, 3, 1, 0, 1, 1]);
            while stream.write_all(&[0x16, 3, 1, 0, 0].repeat(1_000)).is_ok() {}
        }),
        ("nonsense behind the ClientHello", |siege| {
            let stream = connect(siege);
            siege.expect(&stream, "something behind the ClientHello");
            let hello = hello(&mut client(siege));
            assert!(write(&stream, &hello));
            write(&stream, &[0xAA; 1_000]);
            until_end(&stream);
        }),
        ("a client that never finishes", |siege| {
            let stream = connect(siege);
            siege.expect(&stream, "no handshake within 3 s");
            assert!(write(&stream, &hello(&mut client(siege))));
            until_end(&stream);
        }),
        ("keys that change without end", |siege| {
            let mut tls = StreamOwned::new(client(siege), connect(siege));
            tls.write_all(b"GET /echo HTTP/1.1\r\n").unwrap();
            for _ in 0..20_000 {
                tls.conn.refresh_traffic_keys().unwrap();
                if tls.flush().is_err() {
                    return;
                }
            }
            let _ = tls.write_all(&REQUEST[b"GET /echo HTTP/1.1\r\n".len()..]);
            let mut answer = Vec::new();
            let _ = tls.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer.ends_with(b"GET localhost /echo\n"));
        }),
        ("a handshake anew", |siege| {
            let mut openssl = siege.daemon.run_as("openssl", "sh");
            let ask =
                "(sleep 1; echo R; sleep 1) | openssl s_client -tls1_2 -servername localhost -connect \"$0\" 2>&1; true";
            openssl.args(["-c", ask, &format!("127.0.0.1:{}", web().good)]);
            let said = run::outcome(&mut openssl).unwrap().to_string();
            assert!(
                said.contains("RENEGOTIATING") && said.contains("no renegotiation"),
                "{said}"
            );
        }),
        ("half of a connection closed before the answer", |siege| {
            let mut tls = StreamOwned::new(client(siege), connect(siege));
            tls.write_all(REQUEST).unwrap();
            tls.conn.send_close_notify();
            tls.flush().unwrap();
            tls.sock.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            tls.read_to_end(&mut answer).unwrap();
            assert!(answer.ends_with(b"GET localhost /echo\n"));
        }),
        ("a server that never finishes", |siege| {
            let upstream = Upstream::start(|mut stream| {
                let _ = stream.read(&mut [0; 1_000]);
                thread::sleep(Duration::from_secs(10));
            });
            let stream = siege.agent.connect(upstream.port).unwrap();
            siege.expect(&stream, "no handshake within 3 s");
            write(&stream, &hello(&mut client(siege)));
            assert!(until_end(&stream).starts_with(&[0x15, 3]));
        }),
        ("a server that talks nonsense", |siege| {
            let upstream = Upstream::start(|mut stream| {
                let _ = stream.read(&mut [0; 1_000]);
                while stream.write_all(&[0xAA; 32 << 10]).is_ok() {}
            });
            let stream = siege.agent.connect(upstream.port).unwrap();
            siege.expect(&stream, "tls_upstream_failed");
            write(&stream, &hello(&mut client(siege)));
            assert!(until_end(&stream).starts_with(&[0x15, 3]));
        }),
        ("a server whose handshake never ends", |siege| {
            let upstream = Upstream::start(|mut stream| {
                let _ = stream.read(&mut [0; 1_000]);
                // A ServerHello of 16 MiB.
                let mut said = vec![0x16, 3, 3, 0x40, 0, 2, 0xFF, 0xFF, 0xFF];
                said.resize(5 + (16 << 10), 3);
                while stream.write_all(&said).is_ok() {
                    said.splice(5..9, [3; 4]);
                }
            });
            let stream = siege.agent.connect(upstream.port).unwrap();
            siege.expect(&stream, "tls_upstream_failed");
            write(&stream, &hello(&mut client(siege)));
            assert!(until_end(&stream).starts_with(&[0x15, 3]));
        }),
    ]);
}
