//! Those who look on: consoles over bare sockets, whose frames nobody has to understand, and followers
//! of logs, events and changes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{Dice, Scene, Tally};
use crate::desk::TOKEN;

/// What a client that never reads has room for. The daemon's end may have 4 MiB, and all of the console is
/// asked for, which is more: nothing is taken from the first second on.
const UNREAD_BYTES: u32 = 4096;
/// How long it does not look: the minute after which it is to be let go, and half of one.
const UNREAD_MS: (usize, usize) = (90_000, 100_000);
/// How long it then takes to find that the connection was closed.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
const STAYS_MS: (usize, usize) = (5_000, 15_000);
const IS_AWAY_MS: (usize, usize) = (500, 3_000);
const WATCHES_ANEW_EVERY: Duration = Duration::from_secs(60);
/// A close frame as a client sends it: masked, with nothing in it.
const GOODBYE: &[u8] = &[0x88, 0x80, 0, 0, 0, 0];

/// Reads its console for as long as the load lasts.
pub async fn reads(scene: Arc<Scene>, index: usize) {
    let Some(mut stream) = console(&scene, index, None).await else { return };
    // Each arm only waits; the bytes themselves are worth nothing.
    tokio::select! {
        () = scene.stop.cancelled() => (),
        error = read_all(&scene, &mut stream) => {
            scene.tally.fail(format!("console of r{index} was cut off: {error:?}"));
        }
    }
}

/// Reads for a while, leaves with or without a goodbye, and comes back.
pub async fn comes_and_goes(scene: Arc<Scene>, index: usize) {
    let mut dice = Dice::new(scene.seed, index as u64);
    loop {
        let Some(mut stream) = console(&scene, index, None).await else { return };
        let stay = dice.between(STAYS_MS.0, STAYS_MS.1);
        // As above.
        tokio::select! {
            () = scene.stop.cancelled() => return,
            error = read_all(&scene, &mut stream) => {
                scene.tally.fail(format!("console of r{index} was cut off: {error:?}"));
            }
            () = tokio::time::sleep(stay) => (),
        }
        if dice.roll(2) == 0 {
            let _ = stream.write_all(GOODBYE).await;
        }
        drop(stream);
        Tally::add(&scene.tally.returns, 1);
        if !scene.pause(dice.between(IS_AWAY_MS.0, IS_AWAY_MS.1)).await {
            return;
        }
    }
}

/// Takes not a byte, until it looks whether anybody is still there.
pub async fn never_reads(scene: Arc<Scene>, index: usize) {
    let mut dice = Dice::new(scene.seed, index as u64);
    loop {
        let Some(mut stream) = console(&scene, index, Some(UNREAD_BYTES)).await else { return };
        if !scene.pause(dice.between(UNREAD_MS.0, UNREAD_MS.1)).await {
            return;
        }
        let closed = timeout(CLOSED_WITHIN, read_all(&scene, &mut stream)).await;
        let count = if closed.is_ok() { &scene.tally.let_go } else { &scene.tally.kept };
        Tally::add(count, 1);
    }
}

/// Returns when the connection has ended, with how if not in order.
async fn read_all(scene: &Scene, stream: &mut TcpStream) -> Option<io::Error> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return None,
            Ok(count) => Tally::add(&scene.tally.console_bytes, count),
            Err(error) => return Some(error),
        }
    }
}

async fn console(scene: &Scene, index: usize, room: Option<u32>) -> Option<TcpStream> {
    match upgraded(scene, index, room).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            scene.tally.fail(format!("console of r{index}: {error}"));
            None
        }
    }
}

/// Half of them get JSON, half binary frames.
async fn upgraded(scene: &Scene, index: usize, room: Option<u32>) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = room {
        socket.set_recv_buffer_size(bytes)?;
    }
    let mut stream = socket.connect(scene.address).await?;
    let format = if index % 2 == (index / 10) % 2 { "json" } else { "binary" };
    let from = if room.is_some() { "&offset=0" } else { "" };
    let request = format!(
        "GET /console/r{index}?token={TOKEN}&format={format}{from} HTTP/1.1\r\nHost: localhost\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte, since what follows is not to be read by those who never read.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    Ok(stream)
}

pub async fn follows_log(scene: Arc<Scene>, index: usize) {
    follow(&scene, &format!("/v1/sandboxes/r{index}/logs?follow=1&tail=1024")).await;
}

pub async fn follows_events(scene: Arc<Scene>) {
    follow(&scene, "/v1/events?follow=1").await;
}

/// From now on, as a panel that has its list already.
pub async fn watches(scene: Arc<Scene>) {
    let page = scene.get("/v1/sandboxes?label=shard=0").await;
    let version = page["resource_version"].as_str().unwrap_or_default().to_owned();
    follow(&scene, &format!("/v1/sandboxes?watch=1&resource_version={version}")).await;
}

/// From nothing, and again: everything that is there comes each time.
pub async fn watches_anew(scene: Arc<Scene>) {
    while !scene.stop.is_cancelled() {
        let followed = follow(&scene, "/v1/sandboxes?watch=1");
        // Running out is what it is to do.
        if timeout(WATCHES_ANEW_EVERY, followed).await.is_ok() {
            // It ended by itself; that is on record, and need not be so a thousand times a second.
            scene.pause(Duration::from_secs(1)).await;
        }
    }
}

/// Counts lines until the load ends. A stream that ends before is a failure.
async fn follow(scene: &Scene, path: &str) {
    let counted = async {
        let request = scene.http.get(scene.url(path)).bearer_auth(TOKEN);
        let mut answer = request.send().await?.error_for_status()?;
        while let Some(chunk) = answer.chunk().await? {
            let lines = chunk.iter().filter(|byte| **byte == b'\n').count();
            Tally::add(&scene.tally.lines_followed, lines);
        }
        Ok::<_, reqwest::Error>(())
    };
    // Each arm only waits; lines are counted, not kept.
    tokio::select! {
        () = scene.stop.cancelled() => (),
        ended = counted => scene.tally.fail(format!("GET {path} ended: {ended:?}")),
    }
}
