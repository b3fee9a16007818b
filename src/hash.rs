//! What bytes hash to: wherever something is compared, named or noted by its contents, as text; and the checksum by which
//! an accident shows.

use sha2::{Digest as _, Sha256};

/// SHA-256, as 64 lower-case hexadecimal digits.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// The beginning of a hash in hexadecimal: enough to tell a few apart.
pub fn first(hash: &str, digits: usize) -> &str {
    hash.get(..digits).unwrap_or(hash)
}

/// Two lower-case digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// CRC-32C (Castagnoli), as iSCSI and TensorBoard's files have it. Every run of up to 32 wrong bits shows, and of other
/// accidents all but one in four milliards; whoever means harm can meet it.
pub fn crc32c(bytes: impl AsRef<[u8]>) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ CRC32C[usize::from(crc as u8 ^ byte)];
    !bytes.as_ref().iter().fold(u32::MAX, step)
}

/// What each byte does to the checksum: one step rather than eight.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < table.len() {
        let (mut crc, mut bit) = (n as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the catalogues of CRCs, and two of RFC 3720, B.4.
    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c("123456789"), 0xE306_9283);
        assert_eq!(crc32c([0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c([0xFF; 32]), 0x62A8_AB43);
    }

    /// FIPS 180-2, B.1.
    #[test]
    fn a_hash_reads_as_everybody_writes_it() {
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
