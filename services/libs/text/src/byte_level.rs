//! GPT-2's spelling of bytes as printable characters.

/// The byte that `c` stands for.
///
/// Source: Radford et al., GPT-2, encoder.py, `bytes_to_unicode`: printable Latin-1 stands for itself,
/// the other bytes, in order, for U+0100 and up.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    Some(byte as u8)
}

/// The bytes that a token's spelling stands for; `None` if it is not spelled this way.
pub(crate) fn bytes_of(spelling: &str) -> Option<Box<[u8]>> {
    spelling.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = (0..0x200).filter_map(|c| byte_of(char::from_u32(c)?)).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len(), 256);
        assert_eq!(bytes_of("ĠHiĊ").as_deref(), Some(&b" Hi\n"[..]));
        assert_eq!(bytes_of("a b"), None);
        assert_eq!(byte_of('\u{144}'), None);
        assert_eq!(byte_of('😀'), None);
    }
}
