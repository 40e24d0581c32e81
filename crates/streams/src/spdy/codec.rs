//! Bytes to frames and back, without I/O.
//!
//! The decoder never holds more than one control frame: data is handed on in pieces as it arrives, however large
//! the peer declares a frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{Frame, FrameError, Headers};
use super::headers::{HeaderCompressor, HeaderDecompressor};
use crate::pipe::MAX_PIECE;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const VERSION: u16 = 3;
const FRAME_HEADER: usize = 8;
/// Control frames are small here: a header block of a few names.
const MAX_CONTROL: usize = 64 * 1024;
const STREAM_MASK: u32 = 0x7fff_ffff;

/// A data frame whose end has not arrived.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    stream: u32,
    fin: bool,
    remaining: usize,
}

/// Makes frames of what arrives.
pub struct Decoder {
    headers: HeaderDecompressor,
    unfinished: Option<Unfinished>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

fn length_error(kind: u16, length: usize) -> FrameError {
    FrameError::Length { kind, length }
}

impl Decoder {
    pub fn new() -> Self {
        Decoder {
            headers: HeaderDecompressor::new(),
            unfinished: None,
        }
    }

    /// The next frame in `buffer`, or `None` when more bytes are needed. Frames of unknown types are skipped.
    /// After an error the connection is over.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(unfinished) = self.unfinished {
                return Ok(self.data(unfinished, buffer));
            }
            let Some(header) = buffer.get(..FRAME_HEADER) else {
                return Ok(None);
            };
            let mut header = header;
            let (first, second) = (header.get_u32(), header.get_u32());
            let [flags, ..] = second.to_be_bytes();
            let length = usize::try_from(second & 0x00ff_ffff).unwrap_or(usize::MAX);
            if first & !STREAM_MASK == 0 {
                if first == 0 {
                    return Err(FrameError::StreamZero(0));
                }
                buffer.advance(FRAME_HEADER);
                self.unfinished = Some(Unfinished {
                    stream: first,
                    fin: flags & FLAG_FIN != 0,
                    remaining: length,
                });
                continue;
            }
            let [version_high, version_low, kind_high, kind_low] = (first & STREAM_MASK).to_be_bytes();
            let version = u16::from_be_bytes([version_high, version_low]);
            let kind = u16::from_be_bytes([kind_high, kind_low]);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(length_error(kind, length));
            }
            if buffer.len() < FRAME_HEADER + length {
                buffer.reserve(FRAME_HEADER + length - buffer.len());
                return Ok(None);
            }
            buffer.advance(FRAME_HEADER);
            let body = buffer.split_to(length).freeze();
            if let Some(frame) = self.control(kind, flags, body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn data(&mut self, mut unfinished: Unfinished, buffer: &mut BytesMut) -> Option<Frame> {
        let length = unfinished.remaining.min(buffer.len()).min(MAX_PIECE);
        if length == 0 && unfinished.remaining > 0 {
            return None;
        }
        unfinished.remaining -= length;
        let ended = unfinished.remaining == 0;
        self.unfinished = (!ended).then_some(unfinished);
        Some(Frame::Data {
            stream: unfinished.stream,
            fin: unfinished.fin && ended,
            // A copy, so that a small piece does not keep a large buffer alive.
            bytes: Bytes::copy_from_slice(&buffer.split_to(length)),
        })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Frame>, FrameError> {
        let length = body.len();
        let fin = flags & FLAG_FIN != 0;
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| length_error(kind, length));
        let stream = |body: &mut Bytes| match number(body)? & STREAM_MASK {
            0 => Err(FrameError::StreamZero(kind)),
            stream => Ok(stream),
        };
        Ok(Some(match kind {
            SYN_STREAM => {
                let stream = stream(&mut body)?;
                let associated = number(&mut body)? & STREAM_MASK;
                let priority = body.try_get_u16().map_err(|_| length_error(kind, length))?;
                Frame::SynStream {
                    stream,
                    associated,
                    priority: priority.to_be_bytes()[0] >> 5,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers: self.headers.decompress(&body)?,
                }
            }
            SYN_REPLY => Frame::SynReply {
                stream: stream(&mut body)?,
                fin,
                headers: self.headers.decompress(&body)?,
            },
            HEADERS => Frame::Headers {
                stream: stream(&mut body)?,
                fin,
                headers: self.headers.decompress(&body)?,
            },
            RST_STREAM => Frame::Rst {
                stream: stream(&mut body)?,
                status: number(&mut body)?,
            },
            SETTINGS => {
                let count = usize::try_from(number(&mut body)?).unwrap_or(usize::MAX);
                if count.checked_mul(8) != Some(body.len()) {
                    return Err(length_error(kind, length));
                }
                let mut settings = Vec::with_capacity(count);
                for _ in 0..count {
                    settings.push((number(&mut body)? & 0x00ff_ffff, number(&mut body)?));
                }
                Frame::Settings(settings)
            }
            PING => Frame::Ping(number(&mut body)?),
            GOAWAY => Frame::GoAway {
                last_stream: number(&mut body)? & STREAM_MASK,
                status: number(&mut body)?,
            },
            WINDOW_UPDATE => Frame::WindowUpdate {
                stream: number(&mut body)? & STREAM_MASK,
                delta: number(&mut body)? & STREAM_MASK,
            },
            _ => return Ok(None),
        }))
    }
}

/// Makes bytes of frames.
pub struct Encoder(HeaderCompressor);

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    pub fn new() -> Self {
        Encoder(HeaderCompressor::new())
    }

    /// Appends the frame to `out`. Data must be shorter than 16 MiB.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let fin = |fin: &bool| if *fin { FLAG_FIN } else { 0 };
        match frame {
            Frame::Data {
                stream,
                fin: end,
                bytes,
            } => {
                out.put_u32(stream & STREAM_MASK);
                out.put_u32(u32::from(fin(end)) << 24 | length(bytes.len()));
                out.put_slice(bytes);
            }
            Frame::SynStream {
                stream,
                associated,
                priority,
                fin: end,
                unidirectional,
                headers,
            } => {
                let flags = fin(end) | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                self.control(out, SYN_STREAM, flags, |compressor, out| {
                    out.put_u32(*stream);
                    out.put_u32(*associated);
                    out.put_u8((priority & 7) << 5);
                    out.put_u8(0);
                    compressor.compress(headers, out);
                });
            }
            Frame::SynReply {
                stream,
                fin: end,
                headers,
            } => self.block(out, SYN_REPLY, fin(end), *stream, headers),
            Frame::Headers {
                stream,
                fin: end,
                headers,
            } => self.block(out, HEADERS, fin(end), *stream, headers),
            Frame::Rst { stream, status } => self.numbers(out, RST_STREAM, &[*stream, *status]),
            Frame::Settings(settings) => {
                let mut numbers = vec![length(settings.len())];
                numbers.extend(settings.iter().flat_map(|(id, value)| [*id, *value]));
                self.numbers(out, SETTINGS, &numbers);
            }
            Frame::Ping(id) => self.numbers(out, PING, &[*id]),
            Frame::GoAway { last_stream, status } => self.numbers(out, GOAWAY, &[*last_stream, *status]),
            Frame::WindowUpdate { stream, delta } => self.numbers(out, WINDOW_UPDATE, &[*stream, *delta]),
        }
    }

    fn control(
        &mut self,
        out: &mut BytesMut,
        kind: u16,
        flags: u8,
        body: impl FnOnce(&mut HeaderCompressor, &mut BytesMut),
    ) {
        out.put_u16(0x8000 | VERSION);
        out.put_u16(kind);
        let at = out.len();
        out.put_u32(0);
        body(&mut self.0, out);
        let word = u32::from(flags) << 24 | length(out.len() - at - 4);
        if let Some(place) = out.get_mut(at..at + 4) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }

    fn block(&mut self, out: &mut BytesMut, kind: u16, flags: u8, stream: u32, headers: &Headers) {
        self.control(out, kind, flags, |compressor, out| {
            out.put_u32(stream);
            compressor.compress(headers, out);
        });
    }

    fn numbers(&mut self, out: &mut BytesMut, kind: u16, numbers: &[u32]) {
        self.control(out, kind, 0, |_, out| {
            numbers.iter().for_each(|number| out.put_u32(*number))
        });
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut buffer = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.decode(&mut buffer)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn some_headers() -> impl Strategy<Value = Headers> {
        proptest::collection::btree_map("[a-z]{1,8}", "[ -~]{0,40}", 0..5)
            .prop_map(|map| Headers(map.into_iter().collect()))
    }

    fn some_frame() -> impl Strategy<Value = Frame> {
        let id = 1..=STREAM_MASK;
        prop_oneof![
            (
                id.clone(),
                0..=STREAM_MASK,
                0..8u8,
                any::<bool>(),
                any::<bool>(),
                some_headers()
            )
                .prop_map(|(stream, associated, priority, fin, unidirectional, headers)| {
                    Frame::SynStream {
                        stream,
                        associated,
                        priority,
                        fin,
                        unidirectional,
                        headers,
                    }
                }),
            (id.clone(), any::<bool>(), some_headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), some_headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::Rst { stream, status }),
            proptest::collection::vec((0..0x00ff_ffffu32, any::<u32>()), 0..4).prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            (0..=STREAM_MASK, any::<u32>()).prop_map(|(last_stream, status)| Frame::GoAway { last_stream, status }),
            (0..=STREAM_MASK, 0..=STREAM_MASK).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            (id, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..100)).prop_map(|(stream, fin, bytes)| {
                Frame::Data {
                    stream,
                    fin,
                    bytes: bytes.into(),
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn frames_round_trip_whole(frames in proptest::collection::vec(some_frame(), 0..12)) {
            let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
            frames.iter().for_each(|frame| encoder.encode(frame, &mut out));
            prop_assert_eq!(decode_all(&mut Decoder::new(), &out), Ok(frames));
        }

        /// However the bytes are cut, the same streams come out.
        #[test]
        fn frames_round_trip_in_pieces(frames in proptest::collection::vec(some_frame(), 1..8), cut in 1..40usize) {
            let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
            frames.iter().for_each(|frame| encoder.encode(frame, &mut out));
            let (mut decoder, mut buffer, mut got) = (Decoder::new(), BytesMut::new(), Vec::new());
            for piece in out.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            let bytes_of = |frames: &[Frame]| -> (Vec<u8>, usize, usize) {
                let data = frames.iter().filter_map(|frame| match frame {
                    Frame::Data { bytes, fin, .. } => Some((bytes, fin)),
                    _ => None,
                });
                let all = data.clone().flat_map(|(bytes, _)| bytes.to_vec()).collect();
                let ends = data.filter(|(_, fin)| **fin).count();
                (all, ends, frames.iter().filter(|frame| !matches!(frame, Frame::Data { .. })).count())
            };
            prop_assert_eq!(bytes_of(&got), bytes_of(&frames));
        }

        #[test]
        fn rubbish_is_an_error_not_a_panic(rubbish in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _any_answer = decode_all(&mut Decoder::new(), &rubbish);
        }

        /// Broken anywhere, a good conversation ends in frames or an error, in bounded memory.
        #[test]
        fn damage_is_an_error_not_a_panic(
            frames in proptest::collection::vec(some_frame(), 1..6), at in any::<prop::sample::Index>(), to in any::<u8>()
        ) {
            let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
            frames.iter().for_each(|frame| encoder.encode(frame, &mut out));
            let at = at.index(out.len());
            out[at] = to;
            let _any_answer = decode_all(&mut Decoder::new(), &out);
        }
    }

    #[test]
    fn impossible_frames_are_refused_at_their_header() {
        let refused = |bytes: &[u8]| decode_all(&mut Decoder::new(), bytes).unwrap_err();
        let control = |kind: u8, length: [u8; 3], body: &[u8]| [&[0x80, 3, 0, kind, 0][..], &length, body].concat();
        assert_eq!(refused(&[0x80, 2, 0, 1, 0, 0, 0, 0]), FrameError::Version(2));
        // Sixteen megabytes of header block are refused before any of it is kept.
        assert!(matches!(
            refused(&control(1, [255, 255, 255], &[])),
            FrameError::Length { kind: 1, .. }
        ));
        assert!(matches!(
            refused(&control(3, [0, 0, 4], &[0, 0, 0, 1])),
            FrameError::Length { kind: 3, .. }
        ));
        assert!(matches!(
            refused(&control(4, [0, 0, 4], &[0, 0, 0, 9])),
            FrameError::Length { kind: 4, .. }
        ));
        assert_eq!(refused(&control(3, [0, 0, 8], &[0; 8])), FrameError::StreamZero(3));
        assert_eq!(refused(&[0; 8]), FrameError::StreamZero(0));
        assert_eq!(
            refused(&control(2, [0, 0, 8], &[0, 0, 0, 1, 9, 9, 9, 9])),
            FrameError::Compression
        );
        // Unknown types are skipped.
        let mut bytes = control(99, [0, 0, 2], &[1, 2]);
        bytes.extend(control(6, [0, 0, 4], &[0, 0, 0, 7]));
        assert_eq!(decode_all(&mut Decoder::new(), &bytes), Ok(vec![Frame::Ping(7)]));
    }

    #[test]
    fn a_huge_data_frame_is_handed_on_in_pieces() {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::from(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff][..]);
        let (mut seen, mut ends) = (0, 0);
        let mut sent = 0;
        while sent < 0x00ff_ffff {
            let piece = (0x00ff_ffff - sent).min(50_000);
            buffer.extend_from_slice(&vec![0; piece]);
            sent += piece;
            while let Some(Frame::Data { bytes, fin, .. }) = decoder.decode(&mut buffer).unwrap() {
                assert!(bytes.len() <= MAX_PIECE);
                seen += bytes.len();
                ends += usize::from(fin);
            }
            assert!(buffer.is_empty());
        }
        assert_eq!((seen, ends), (0x00ff_ffff, 1));
    }
}
