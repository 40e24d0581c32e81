//! The ciphers, each exactly as upstream stores its output.
//!
//! - aesgcm: a random nonce of 12 bytes, then the sealed value; the key of the store is authenticated with it;
//! - aescbc: a random block as initialization vector, then the padded (PKCS#7) value; nothing is authenticated;
//! - secretbox: a random nonce of 24 bytes, then the sealed value (XSalsa20 and Poly1305);
//! - seeded: 32 random bytes, from which and a seed the value's own key is made (HKDF-Expand with SHA-256), then as aesgcm.

use std::fmt;

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hmac, rand};
use crypto_secretbox::XSalsa20Poly1305;
use crypto_secretbox::aead::{Aead, KeyInit};

const BLOCK: usize = 16;
const TAG: usize = 16;
const BOX_NONCE: usize = 24;
/// Of what a value's own key is made, and how long a seed is at least.
const INFO: usize = 32;
pub const SEED: usize = 32;

/// Why a value could not be transformed. Says nothing of the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    #[error("the stored data was shorter than the required size")]
    Short,
    #[error("cipher: message authentication failed")]
    Authentication,
    #[error("the stored data is not a multiple of the block size")]
    Blocks,
    #[error("invalid padding on input")]
    Padding,
    #[error("crypto/aes: invalid key size {0}")]
    KeySize(usize),
    #[error("unable to read sufficient random bytes")]
    Random,
}

fn random<const N: usize>() -> Result<[u8; N], CipherError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| CipherError::Random)?;
    Ok(bytes)
}

/// One key with its algorithm.
pub enum Cipher {
    Gcm(Box<Gcm>),
    Cbc(Box<Cbc>),
    Secretbox(Box<XSalsa20Poly1305>),
    Seeded(Box<Seed>),
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cipher::Gcm(_) => "Gcm",
            Cipher::Cbc(_) => "Cbc",
            Cipher::Secretbox(_) => "Secretbox",
            Cipher::Seeded(_) => "Seeded",
        })
    }
}

impl Cipher {
    pub fn gcm(key: &[u8]) -> Result<Self, CipherError> {
        Gcm::new(key).map(|gcm| Cipher::Gcm(Box::new(gcm)))
    }
    pub fn cbc(key: &[u8]) -> Result<Self, CipherError> {
        Cbc::new(key).map(|cbc| Cipher::Cbc(Box::new(cbc)))
    }
    pub fn secretbox(key: &[u8; 32]) -> Self {
        Cipher::Secretbox(Box::new(XSalsa20Poly1305::new(key.into())))
    }
    /// A seed that is at least [`SEED`] bytes long.
    pub fn seeded(seed: &[u8]) -> Result<Self, CipherError> {
        if seed.len() < SEED {
            return Err(CipherError::KeySize(seed.len()));
        }
        Ok(Cipher::Seeded(Box::new(Seed(hmac::Key::new(hmac::HMAC_SHA256, seed)))))
    }

    /// Appends the encrypted value to `out`.
    pub fn encrypt(&self, value: &[u8], authenticated: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
        match self {
            Cipher::Gcm(gcm) => gcm.encrypt(value, authenticated, out),
            Cipher::Cbc(cbc) => cbc.encrypt(value, out),
            Cipher::Secretbox(key) => {
                let nonce = random::<BOX_NONCE>()?;
                out.extend_from_slice(&nonce);
                let sealed = key
                    .encrypt(&nonce.into(), value)
                    .map_err(|_| CipherError::Authentication)?;
                out.extend_from_slice(&sealed);
                Ok(())
            }
            Cipher::Seeded(seed) => {
                let info = random::<INFO>()?;
                out.extend_from_slice(&info);
                seed.key(&info)?.encrypt(value, authenticated, out)
            }
        }
    }

    pub fn decrypt(&self, data: &[u8], authenticated: &[u8]) -> Result<Vec<u8>, CipherError> {
        match self {
            Cipher::Gcm(gcm) => gcm.decrypt(data, authenticated),
            Cipher::Cbc(cbc) => cbc.decrypt(data),
            Cipher::Secretbox(key) => {
                let (nonce, sealed) = data.split_first_chunk::<BOX_NONCE>().ok_or(CipherError::Short)?;
                if sealed.len() < TAG {
                    return Err(CipherError::Short);
                }
                key.decrypt(nonce.into(), sealed)
                    .map_err(|_| CipherError::Authentication)
            }
            Cipher::Seeded(seed) => {
                let (info, sealed) = data.split_first_chunk::<INFO>().ok_or(CipherError::Short)?;
                seed.key(info)?.decrypt(sealed, authenticated)
            }
        }
    }
}

pub struct Gcm(LessSafeKey);

impl Gcm {
    fn new(key: &[u8]) -> Result<Self, CipherError> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            32 => &AES_256_GCM,
            other => return Err(CipherError::KeySize(other)),
        };
        let key = UnboundKey::new(algorithm, key).map_err(|_| CipherError::KeySize(key.len()))?;
        Ok(Gcm(LessSafeKey::new(key)))
    }

    fn encrypt(&self, value: &[u8], authenticated: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
        let nonce = random::<NONCE_LEN>()?;
        out.reserve(NONCE_LEN + value.len() + TAG);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(value);
        let sealed = out.get_mut(start..).unwrap_or_default();
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(authenticated), sealed)
            .map_err(|_| CipherError::Authentication)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn decrypt(&self, data: &[u8], authenticated: &[u8]) -> Result<Vec<u8>, CipherError> {
        let (nonce, sealed) = data.split_first_chunk::<NONCE_LEN>().ok_or(CipherError::Short)?;
        let mut value = sealed.to_vec();
        let length = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(authenticated),
                &mut value,
            )
            .map_err(|_| CipherError::Authentication)?
            .len();
        value.truncate(length);
        Ok(value)
    }
}

pub struct Cbc {
    encrypting: PaddedBlockEncryptingKey,
    decrypting: PaddedBlockDecryptingKey,
}

impl Cbc {
    fn new(key: &[u8]) -> Result<Self, CipherError> {
        let algorithm = match key.len() {
            16 => &AES_128,
            24 => &AES_192,
            32 => &AES_256,
            other => return Err(CipherError::KeySize(other)),
        };
        let wrong = |_| CipherError::KeySize(key.len());
        let unbound = || UnboundCipherKey::new(algorithm, key).map_err(wrong);
        Ok(Cbc {
            encrypting: PaddedBlockEncryptingKey::cbc_pkcs7(unbound()?).map_err(wrong)?,
            decrypting: PaddedBlockDecryptingKey::cbc_pkcs7(unbound()?).map_err(wrong)?,
        })
    }

    fn encrypt(&self, value: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
        let vector = random::<BLOCK>()?;
        out.extend_from_slice(&vector);
        let mut padded = value.to_vec();
        self.encrypting
            .less_safe_encrypt(&mut padded, EncryptionContext::Iv128(FixedLength::from(&vector)))
            .map_err(|_| CipherError::Padding)?;
        out.extend_from_slice(&padded);
        Ok(())
    }

    fn decrypt(&self, data: &[u8]) -> Result<Vec<u8>, CipherError> {
        let (vector, padded) = data.split_first_chunk::<BLOCK>().ok_or(CipherError::Short)?;
        if padded.is_empty() {
            return Err(CipherError::Padding);
        }
        if padded.len() % BLOCK != 0 {
            return Err(CipherError::Blocks);
        }
        let mut value = padded.to_vec();
        let length = self
            .decrypting
            .decrypt(&mut value, DecryptionContext::Iv128(FixedLength::from(vector)))
            .map_err(|_| CipherError::Padding)?
            .len();
        value.truncate(length);
        Ok(value)
    }
}

pub struct Seed(hmac::Key);

impl Seed {
    /// HKDF-Expand of one block: all that a key of 32 bytes takes.
    fn key(&self, info: &[u8; INFO]) -> Result<Gcm, CipherError> {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(info);
        context.update(&[1]);
        Gcm::new(context.sign().as_ref())
    }
}

/// New bytes for a seed.
pub fn new_seed() -> Result<[u8; SEED], CipherError> {
    random()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Cipher> {
        let key = [7u8; 32];
        vec![
            Cipher::gcm(&key[..16]).unwrap(),
            Cipher::gcm(&key[..24]).unwrap(),
            Cipher::gcm(&key).unwrap(),
            Cipher::cbc(&key[..16]).unwrap(),
            Cipher::cbc(&key[..24]).unwrap(),
            Cipher::cbc(&key).unwrap(),
            Cipher::secretbox(&key),
            Cipher::seeded(&key).unwrap(),
        ]
    }

    proptest! {
        #[test]
        fn values_survive_and_nothing_else_panics(value: Vec<u8>, junk: Vec<u8>, at: prop::sample::Index) {
            for cipher in all() {
                let mut stored = Vec::new();
                cipher.encrypt(&value, b"/registry/a", &mut stored).unwrap();
                prop_assert_eq!(&cipher.decrypt(&stored, b"/registry/a").unwrap(), &value);
                let authenticates_key = matches!(cipher, Cipher::Gcm(_) | Cipher::Seeded(_));
                prop_assert_eq!(cipher.decrypt(&stored, b"/registry/b").is_err(), authenticates_key);
                let at = at.index(stored.len());
                stored[at] ^= 1;
                if !matches!(cipher, Cipher::Cbc(_)) {
                    prop_assert!(cipher.decrypt(&stored, b"/registry/a").is_err());
                }
                // Whatever it is, it is no reason to fall over.
                let _any = cipher.decrypt(&junk, b"/registry/a");
                let _any = cipher.decrypt(&stored[..at], b"/registry/a");
            }
        }
    }

    /// Known answers, made with Go's crypto libraries' algorithms by other implementations.
    #[test]
    fn known_answers() {
        // NIST SP 800-38A F.2.1 (CBC-AES128), its first block, with a block of padding behind it.
        let key = hex::decode("2b7e151628aed2a6abf7158809cf4f3c").unwrap();
        let iv = hex::decode("000102030405060708090a0b0c0d0e0f").unwrap();
        let first = hex::decode("7649abac8119b246cee98e9b12e9197d").unwrap();
        let cipher = Cipher::cbc(&key).unwrap();
        let mut stored = Vec::new();
        let Cipher::Cbc(cbc) = &cipher else { unreachable!() };
        let mut padded = hex::decode("6bc1bee22e409f96e93d7e117393172a").unwrap();
        let vector: [u8; 16] = iv.clone().try_into().unwrap();
        cbc.encrypting
            .less_safe_encrypt(&mut padded, EncryptionContext::Iv128(FixedLength::from(&vector)))
            .unwrap();
        assert_eq!(padded[..16], first);
        stored.extend(iv);
        stored.extend(padded);
        assert_eq!(
            hex::encode(cipher.decrypt(&stored, b"").unwrap()),
            "6bc1bee22e409f96e93d7e117393172a"
        );
        // NaCl's own test of secretbox (tests/secretbox.c).
        let key: [u8; 32] = hex::decode("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
            .unwrap()
            .try_into()
            .unwrap();
        let stored = hex::decode(concat!(
            "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37",
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a",
            "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74",
            "e355a5"
        ))
        .unwrap();
        let value = Cipher::secretbox(&key).decrypt(&stored, b"").unwrap();
        assert!(hex::encode(&value).starts_with("be075fc53c81f2d5cf141316ebeb0c7b"));
        assert_eq!(value.len(), 131);
        // RFC 5869, test case 1: the first block of HKDF-Expand.
        let prk = hex::decode("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5").unwrap();
        let info = hex::decode("f0f1f2f3f4f5f6f7f8f9").unwrap();
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &prk));
        context.update(&info);
        context.update(&[1]);
        assert_eq!(
            hex::encode(context.sign()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
    }

    #[test]
    fn keys_have_a_size() {
        assert_eq!(Cipher::gcm(&[0; 15]).unwrap_err(), CipherError::KeySize(15));
        assert_eq!(Cipher::cbc(&[0; 33]).unwrap_err(), CipherError::KeySize(33));
        assert!(Cipher::seeded(&[0; 31]).is_err());
    }
}
