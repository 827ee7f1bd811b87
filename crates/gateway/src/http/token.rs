//! The token of an answer: the position of the answering shard, in a form that only this incarnation can have written.
//!
//! Clients are channels, too: the checkpoint colour that a client has seen must reach the next shard that it calls.
//! A token is text, `v1.incarnation.shard.epoch.index.colour.mac`, so that a person can read it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use thiserror::Error;

/// The position of a shard when it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The incarnation of the cluster.
    pub incarnation: u64,
    /// The shard that answered.
    pub shard: u32,
    /// Its epoch.
    pub epoch: u64,
    /// The last entry that the answer includes.
    pub index: u64,
    /// The shard's colour.
    pub colour: u64,
}

/// Reasons for which a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not have a token's form.
    #[error("its form is not v1.incarnation.shard.epoch.index.colour.mac")]
    Form,
    /// Its authentication code does not match: it was changed, or is of another server or incarnation.
    #[error("it was not written by this server in this incarnation")]
    Foreign,
}

/// The secret key of the tokens. It is stored beside the data, or shared by the nodes of a cluster, so that tokens survive a restart
/// and end with their incarnation.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

const MAC_BYTES: usize = 16;

impl TokenKey {
    /// The name of the key's file in a data directory.
    pub const FILE: &'static str = "token.key";

    /// Creates a key from secret random bytes.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Reads the key of a data directory, or creates one.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be read or written, or has another length than 32 bytes.
    pub fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(Self::FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                return bytes.try_into().map(Self).map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        "token.key does not have 32 bytes; delete it to create a new one",
                    )
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        // Written to another file and renamed, so that a crash never leaves half a key.
        let beside = data.join("token.key.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&key)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(data)?.sync_all()?;
        Ok(Self(key))
    }

    /// Returns the text of a token.
    #[must_use]
    pub fn sign(&self, token: &Token) -> String {
        let Token { incarnation, shard, epoch, index, colour } = token;
        let mut text = format!("v1.{incarnation}.{shard}.{epoch}.{index}.{colour}");
        let mac = self.mac(&text);
        text.reserve(1 + 2 * MAC_BYTES);
        text.push('.');
        for byte in mac {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        text
    }

    /// Parses and verifies the text of a token.
    ///
    /// # Errors
    /// [`TokenError`] if it does not have a token's form or this key did not sign it.
    pub fn verify(&self, text: &str) -> Result<Token, TokenError> {
        let (signed, mac) = text.rsplit_once('.').ok_or(TokenError::Form)?;
        let mut parts = signed.split('.');
        if parts.next() != Some("v1") {
            return Err(TokenError::Form);
        }
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or(TokenError::Form);
        let incarnation = number()?;
        let shard = u32::try_from(number()?).map_err(|_| TokenError::Form)?;
        let (epoch, index, colour) = (number()?, number()?, number()?);
        if parts.next().is_some() || mac.len() != 2 * MAC_BYTES {
            return Err(TokenError::Form);
        }
        let mut given = [0; MAC_BYTES];
        for (byte, pair) in given.iter_mut().zip(mac.as_bytes().chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        // The whole difference is computed first: the time taken does not depend on its place.
        let differs = given.iter().zip(self.mac(signed)).fold(0, |sum, (a, b)| sum | (a ^ b));
        if differs != 0 {
            return Err(TokenError::Foreign);
        }
        Ok(Token { incarnation, shard, epoch, index, colour })
    }

    fn mac(&self, text: &str) -> [u8; MAC_BYTES] {
        let hash = blake3::keyed_hash(&self.0, text.as_bytes());
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hash.as_bytes()[..MAC_BYTES]);
        mac
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex_digit(digit: u8) -> Result<u8, TokenError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(TokenError::Form),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token { incarnation: 1, shard: 7, epoch: 3, index: 1234, colour: 9 };

    #[test]
    fn a_token_is_read_back_and_a_changed_one_is_not() {
        let key = TokenKey::new([7; 32]);
        let text = key.sign(&TOKEN);
        assert!(text.starts_with("v1.1.7.3.1234.9."));
        assert_eq!(key.verify(&text), Ok(TOKEN));
        assert_eq!(key.verify(&text.replace(".9.", ".8.")), Err(TokenError::Foreign));
        assert_eq!(TokenKey::new([8; 32]).verify(&text), Err(TokenError::Foreign));
        for bad in ["", "v1", "v2.1.7.3.1234.9.00", "v1.1.7.3.1234.9", &text[1..], &text[..text.len() - 1]] {
            assert_eq!(key.verify(bad), Err(TokenError::Form), "{bad}");
        }
    }

    #[test]
    fn a_key_is_drawn_once_for_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let text = TokenKey::open(dir.path()).unwrap().sign(&TOKEN);
        assert_eq!(TokenKey::open(dir.path()).unwrap().verify(&text), Ok(TOKEN));
        std::fs::write(dir.path().join(TokenKey::FILE), b"short").unwrap();
        assert!(TokenKey::open(dir.path()).is_err());
    }
}
