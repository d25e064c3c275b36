//! One GET of a range, spoken over a plain connection: what the far side costs without anything in between.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::server::{BUCKET, KEYS};

/// Nothing on this host takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the server on `port` for `len` bytes of an object from `from` on, and reads them.
pub fn ranged(port: u16, key: &str, from: u64, len: u64) -> Result<()> {
    let host = format!("127.0.0.1:{port}");
    let target = format!("/{BUCKET}/{key}");
    let (at, authorization) = signature(&host, &target);
    let mut stream = TcpStream::connect(&host)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let last = from + len - 1;
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={from}-{last}\r\nx-amz-date: {at}\r\n\
         x-amz-content-sha256: UNSIGNED-PAYLOAD\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("GET {target}"))?;
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("an answer without an end of its head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let first = head.lines().next().unwrap_or_default();
    // The server says 200 where 206 is due.
    ensure!(first.contains(" 206 ") || first.contains(" 200 "), "GET {target}: {first}");
    let got = (answer.len() - end - 4) as u64;
    ensure!(got == len, "GET {target}: {got} bytes instead of {len}");
    Ok(())
}

/// The date and the authorization of a request, by AWS Signature Version 4.
fn signature(host: &str, target: &str) -> (String, String) {
    const HEADERS: &str = "host;x-amz-content-sha256;x-amz-date";
    let at = now();
    let scope = format!("{}/us-east-1/s3/aws4_request", &at[..8]);
    let canonical = format!(
        "GET\n{target}\n\nhost:{host}\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:{at}\n\n\
         {HEADERS}\nUNSIGNED-PAYLOAD"
    );
    let text = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let key = scope.split('/').fold(format!("AWS4{}", KEYS.1).into_bytes(), |key, part| hmac(&key, part));
    let signature = hex(&hmac(&key, &text));
    let credential = format!("{}/{scope}", KEYS.0);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={HEADERS}, Signature={signature}");
    (at, authorization)
}

/// HMAC-SHA-256 of a text under a key of at most 64 bytes.
fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let padded = |with: u8| -> Vec<u8> { (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ with).collect() };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The time as `20260131T235959Z`.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days: years that begin in March, in eras of 400.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{:02}Z", second % 60)
}
