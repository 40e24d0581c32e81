//! Header blocks: name/value lists, compressed with one zlib stream per direction and connection.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::{FrameError, Headers};

/// A header block may not decompress to more than this.
pub(super) const MAX_BLOCK: usize = 64 * 1024;
const MAX_HEADERS: u32 = 256;

/// The words of SPDY/3's dictionary, each preceded by its length in the dictionary.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows the words.
const TEXT: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request",
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented",
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 ",
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,",
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,",
    "deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

pub(super) fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.put_u32(u32::try_from(word.len()).unwrap_or_default());
        dictionary.put_slice(word.as_bytes());
    }
    dictionary.put_slice(TEXT.as_bytes());
    dictionary
}

pub(super) struct HeaderCompressor(Compress);

impl HeaderCompressor {
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Fails only on a stream that was used before.
        let _adler = compress.set_dictionary(&dictionary()).unwrap_or_default();
        HeaderCompressor(compress)
    }

    /// Appends the compressed block to `out`.
    pub fn compress(&mut self, headers: &Headers, out: &mut BytesMut) {
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut plain = Vec::new();
        plain.put_u32(length(headers.0.len()));
        for (name, value) in &headers.0 {
            for text in [name.to_ascii_lowercase().as_str(), value] {
                plain.put_u32(length(text.len()));
                plain.put_slice(text.as_bytes());
            }
        }
        let mut rest = plain.as_slice();
        let mut piece = [0; 1024];
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let flushed = self.0.compress(rest, &mut piece, FlushCompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before_in).unwrap_or(rest.len());
            let made = usize::try_from(self.0.total_out() - before_out).unwrap_or(0);
            rest = rest.get(taken..).unwrap_or_default();
            out.put_slice(&piece[..made.min(piece.len())]);
            // A flush is complete when it did not fill the space it was given.
            if flushed.is_err() || (rest.is_empty() && made < piece.len()) {
                return;
            }
        }
    }
}

pub(super) struct HeaderDecompressor(Decompress);

impl HeaderDecompressor {
    pub fn new() -> Self {
        HeaderDecompressor(Decompress::new(true))
    }

    pub fn decompress(&mut self, mut block: &[u8]) -> Result<Headers, FrameError> {
        let mut plain = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut piece, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before_in).unwrap_or(block.len());
            let made = usize::try_from(self.0.total_out() - before_out).unwrap_or(0);
            block = block.get(taken..).unwrap_or_default();
            plain.put_slice(piece.get(..made).unwrap_or_default());
            if plain.len() > MAX_BLOCK {
                return Err(FrameError::HeadersTooLong(MAX_BLOCK));
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| FrameError::Compression)?;
                }
                // The stream of a connection has no end.
                Err(_) | Ok(Status::StreamEnd) => return Err(FrameError::Compression),
                // Neither in nor out moved, or all is taken and nothing is held back.
                Ok(_) if taken == 0 && made == 0 => break,
                Ok(_) if block.is_empty() && made < piece.len() => break,
                Ok(_) => {}
            }
        }
        if !block.is_empty() {
            return Err(FrameError::Compression);
        }
        parse(&plain)
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, FrameError> {
    let number = |plain: &mut &[u8]| plain.try_get_u32().map_err(|_| FrameError::Headers("cut off"));
    let count = number(&mut plain)?;
    if count > MAX_HEADERS {
        return Err(FrameError::Headers("too many"));
    }
    let text = |plain: &mut &[u8]| {
        let length = usize::try_from(number(plain)?).unwrap_or(usize::MAX);
        let (text, rest) = plain.split_at_checked(length).ok_or(FrameError::Headers("cut off"))?;
        *plain = rest;
        String::from_utf8(text.to_vec()).map_err(|_| FrameError::Headers("not text"))
    };
    let mut headers = Headers::default();
    for _ in 0..count {
        let (name, value) = (text(&mut plain)?, text(&mut plain)?);
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(FrameError::Headers("a name that is empty or not in lower case"));
        }
        if headers.0.iter().any(|(own, _)| *own == name) {
            return Err(FrameError::Headers("a name that occurs twice"));
        }
        headers.0.push((name, value));
    }
    if !plain.is_empty() {
        return Err(FrameError::Headers("something after the last one"));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_spdys() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // Its Adler-32 is what a zlib stream made with it begins with.
        let (a, b) = dictionary.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
        let mut out = BytesMut::new();
        HeaderCompressor::new().compress(&Headers::default(), &mut out);
        assert_eq!(out[2..6], 0xe3c6_a7c2_u32.to_be_bytes());
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut compressor = HeaderCompressor::new();
        let mut out = BytesMut::new();
        let bomb = Headers::new(&[("x", &"a".repeat(50 << 20))]);
        compressor.compress(&bomb, &mut out);
        assert_eq!(
            HeaderDecompressor::new().decompress(&out),
            Err(FrameError::HeadersTooLong(MAX_BLOCK))
        );
    }

    #[test]
    fn malformed_lists_are_refused() {
        let list = |pairs: &[(&str, &str)]| {
            let mut plain = Vec::new();
            plain.put_u32(pairs.len() as u32);
            for (name, value) in pairs {
                for text in [name, value] {
                    plain.put_u32(text.len() as u32);
                    plain.put_slice(text.as_bytes());
                }
            }
            plain
        };
        assert!(parse(&list(&[("a", "1"), ("b", "")])).is_ok());
        for bad in [
            vec![],
            list(&[("A", "1")]),
            list(&[("", "1")]),
            list(&[("a", "1"), ("a", "2")]),
            [list(&[]), vec![0]].concat(),
            vec![0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            vec![0xff; 4],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn blocks_round_trip_on_one_stream(
            blocks in proptest::collection::vec(
                proptest::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,300}", 0..8), 1..6)
        ) {
            let (mut compressor, mut decompressor) = (HeaderCompressor::new(), HeaderDecompressor::new());
            for block in blocks {
                let headers = Headers(block.into_iter().collect());
                let mut out = BytesMut::new();
                compressor.compress(&headers, &mut out);
                prop_assert_eq!(decompressor.decompress(&out), Ok(headers));
            }
        }

        #[test]
        fn rubbish_is_an_error_not_a_panic(rubbish in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any_answer = HeaderDecompressor::new().decompress(&rubbish);
            let _any_answer = parse(&rubbish);
        }
    }
}
