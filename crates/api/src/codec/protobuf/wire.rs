//! Protobuf's wire format: reading fields forwards, writing them backwards.
//!
//! Writing backwards means a nested message's length is known when its header is written, so nothing is
//! measured twice and nothing is copied: the buffer is turned around once at the end.

use super::ProtobufError;

/// The content of a field as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    /// No field of the API is one; kept to name it in errors.
    Fixed32,
    Bytes(&'a [u8]),
}

impl Payload<'_> {
    pub fn wire_type(self) -> u8 {
        match self {
            Payload::Varint(_) => 0,
            Payload::Fixed64(_) => 1,
            Payload::Bytes(_) => 2,
            Payload::Fixed32 => 5,
        }
    }
}

pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or(ProtobufError::Truncated)?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Overflow)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.bytes = rest;
        Ok(head)
    }

    pub fn fixed64(&mut self) -> Result<u64, ProtobufError> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    }

    /// The next field's tag and content; groups are skipped.
    pub fn field(&mut self) -> Result<Option<(u32, Payload<'a>)>, ProtobufError> {
        let mut groups = 0usize;
        while !self.bytes.is_empty() {
            let key = self.varint()?;
            let wire_type = (key & 7) as u8;
            let tag = u32::try_from(key >> 3).map_err(|_| ProtobufError::Overflow)?;
            if tag == 0 {
                return Err(ProtobufError::IllegalTag(tag, wire_type));
            }
            let payload = match wire_type {
                0 => Payload::Varint(self.varint()?),
                1 => Payload::Fixed64(self.fixed64()?),
                2 => {
                    let length = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Truncated)?;
                    Payload::Bytes(self.take(length)?)
                }
                3 => {
                    groups += 1;
                    continue;
                }
                4 if groups > 0 => {
                    groups -= 1;
                    continue;
                }
                5 => {
                    self.take(4)?;
                    Payload::Fixed32
                }
                _ => return Err(ProtobufError::IllegalTag(tag, wire_type)),
            };
            if groups == 0 {
                return Ok(Some((tag, payload)));
            }
        }
        if groups > 0 {
            Err(ProtobufError::Truncated)
        } else {
            Ok(None)
        }
    }
}

/// Writes, forwards, the header of a field of `length` bytes.
pub fn header(bytes: &mut Vec<u8>, tag: u32, length: usize) {
    let mut writer = Writer::default();
    writer.varint(length as u64);
    writer.key(tag, 2);
    bytes.extend(writer.reversed.iter().rev());
}

/// A buffer written from its end to its start.
#[derive(Default)]
pub struct Writer {
    reversed: Vec<u8>,
}

impl Writer {
    pub fn len(&self) -> usize {
        self.reversed.len()
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.reversed.reverse();
        self.reversed
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.reversed.extend(bytes.iter().rev());
    }

    fn varint(&mut self, mut value: u64) {
        let mut bytes = [0u8; 10];
        let mut used = 0;
        for byte in &mut bytes {
            *byte = (value & 0x7f) as u8;
            value >>= 7;
            used += 1;
            if value == 0 {
                break;
            }
            *byte |= 0x80;
        }
        self.raw(bytes.get(..used).unwrap_or_default());
    }

    fn key(&mut self, tag: u32, wire_type: u8) {
        self.varint(u64::from(tag) << 3 | u64::from(wire_type));
    }

    pub fn integer(&mut self, tag: u32, value: i64) {
        // Negative numbers are ten bytes of two's complement.
        self.varint(value as u64);
        self.key(tag, 0);
    }

    pub fn double(&mut self, tag: u32, value: f64) {
        self.raw(&value.to_le_bytes());
        self.key(tag, 1);
    }

    pub fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.raw(bytes);
        self.varint(bytes.len() as u64);
        self.key(tag, 2);
    }

    /// Writes the header of the message that ended where the buffer stood at `end`.
    pub fn close(&mut self, tag: u32, end: usize) {
        self.varint((self.reversed.len() - end) as u64);
        self.key(tag, 2);
    }
}
