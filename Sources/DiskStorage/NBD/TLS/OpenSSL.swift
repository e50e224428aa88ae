import Glibc

/// The functions of OpenSSL 3 that encrypted connections need (openssl(7ssl)). Loaded when the first of them is made: a program that
/// makes none does without the library.
struct OpenSSL: Sendable {
    typealias Pointer = UnsafeMutableRawPointer
    let clientMethod: @convention(c) () -> UnsafeRawPointer?
    let newContext: @convention(c) (UnsafeRawPointer?) -> Pointer?
    let freeContext: @convention(c) (Pointer?) -> Void
    let setDefaultVerifyPaths: @convention(c) (Pointer?) -> Int32
    let loadVerifyLocations: @convention(c) (Pointer?, UnsafePointer<CChar>?, UnsafePointer<CChar>?) -> Int32
    let setVerify: @convention(c) (Pointer?, Int32, UnsafeRawPointer?) -> Void
    let useCertificateChain: @convention(c) (Pointer?, UnsafePointer<CChar>) -> Int32
    let usePrivateKey: @convention(c) (Pointer?, UnsafePointer<CChar>, Int32) -> Int32
    let controlContext: @convention(c) (Pointer?, Int32, Int, UnsafeMutableRawPointer?) -> Int
    let new: @convention(c) (Pointer?) -> Pointer?
    let free: @convention(c) (Pointer?) -> Void
    let setDescriptor: @convention(c) (Pointer?, Int32) -> Int32
    let control: @convention(c) (Pointer?, Int32, Int, UnsafeMutableRawPointer?) -> Int
    let parameters: @convention(c) (Pointer?) -> Pointer?
    let setAddress: @convention(c) (Pointer?, UnsafePointer<CChar>) -> Int32
    let setHost: @convention(c) (Pointer?, UnsafePointer<CChar>) -> Int32
    let connect: @convention(c) (Pointer?) -> Int32
    let read: @convention(c) (Pointer?, UnsafeMutableRawPointer, Int32) -> Int32
    let write: @convention(c) (Pointer?, UnsafeRawPointer, Int32) -> Int32
    let shutdown: @convention(c) (Pointer?) -> Int32
    let errorKind: @convention(c) (Pointer?, Int32) -> Int32
    let verifyResult: @convention(c) (Pointer?) -> Int
    let verifyText: @convention(c) (Int) -> UnsafePointer<CChar>?
    let clearErrors: @convention(c) () -> Void
    let nextError: @convention(c) () -> UInt
    let errorText: @convention(c) (UInt) -> UnsafePointer<CChar>?

    /// nil when the library is not there.
    static let shared = OpenSSL()
    private init?() {
        guard let library = dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL) else { return nil }
        var isComplete = true
        func find<T>(_ name: String, _: T.Type = T.self) -> T? {
            guard let symbol = dlsym(library, name) else {
                isComplete = false
                return nil
            }
            return unsafeBitCast(symbol, to: Optional<T>.self)
        }
        guard let clientMethod = find("TLS_client_method", (@convention(c) () -> UnsafeRawPointer?).self),
            let newContext = find("SSL_CTX_new", (@convention(c) (UnsafeRawPointer?) -> Pointer?).self),
            let freeContext = find("SSL_CTX_free", (@convention(c) (Pointer?) -> Void).self),
            let setDefaultVerifyPaths = find("SSL_CTX_set_default_verify_paths", (@convention(c) (Pointer?) -> Int32).self),
            let loadVerifyLocations = find(
                "SSL_CTX_load_verify_locations", (@convention(c) (Pointer?, UnsafePointer<CChar>?, UnsafePointer<CChar>?) -> Int32).self),
            let setVerify = find("SSL_CTX_set_verify", (@convention(c) (Pointer?, Int32, UnsafeRawPointer?) -> Void).self),
            let useCertificateChain = find("SSL_CTX_use_certificate_chain_file", (@convention(c) (Pointer?, UnsafePointer<CChar>) -> Int32).self),
            let usePrivateKey = find("SSL_CTX_use_PrivateKey_file", (@convention(c) (Pointer?, UnsafePointer<CChar>, Int32) -> Int32).self),
            let controlContext = find("SSL_CTX_ctrl", (@convention(c) (Pointer?, Int32, Int, UnsafeMutableRawPointer?) -> Int).self),
            let new = find("SSL_new", (@convention(c) (Pointer?) -> Pointer?).self), let free = find("SSL_free", (@convention(c) (Pointer?) -> Void).self),
            let setDescriptor = find("SSL_set_fd", (@convention(c) (Pointer?, Int32) -> Int32).self),
            let control = find("SSL_ctrl", (@convention(c) (Pointer?, Int32, Int, UnsafeMutableRawPointer?) -> Int).self),
            let parameters = find("SSL_get0_param", (@convention(c) (Pointer?) -> Pointer?).self),
            let setAddress = find("X509_VERIFY_PARAM_set1_ip_asc", (@convention(c) (Pointer?, UnsafePointer<CChar>) -> Int32).self),
            let setHost = find("SSL_set1_host", (@convention(c) (Pointer?, UnsafePointer<CChar>) -> Int32).self),
            let connect = find("SSL_connect", (@convention(c) (Pointer?) -> Int32).self),
            let read = find("SSL_read", (@convention(c) (Pointer?, UnsafeMutableRawPointer, Int32) -> Int32).self),
            let write = find("SSL_write", (@convention(c) (Pointer?, UnsafeRawPointer, Int32) -> Int32).self),
            let shutdown = find("SSL_shutdown", (@convention(c) (Pointer?) -> Int32).self),
            let errorKind = find("SSL_get_error", (@convention(c) (Pointer?, Int32) -> Int32).self),
            let verifyResult = find("SSL_get_verify_result", (@convention(c) (Pointer?) -> Int).self),
            let verifyText = find("X509_verify_cert_error_string", (@convention(c) (Int) -> UnsafePointer<CChar>?).self),
            let clearErrors = find("ERR_clear_error", (@convention(c) () -> Void).self), let nextError = find("ERR_get_error", (@convention(c) () -> UInt).self),
            let errorText = find("ERR_reason_error_string", (@convention(c) (UInt) -> UnsafePointer<CChar>?).self), isComplete
        else { return nil }
        (self.clientMethod, self.newContext, self.freeContext) = (clientMethod, newContext, freeContext)
        (self.setDefaultVerifyPaths, self.loadVerifyLocations, self.setVerify) = (setDefaultVerifyPaths, loadVerifyLocations, setVerify)
        (self.useCertificateChain, self.usePrivateKey, self.controlContext) = (useCertificateChain, usePrivateKey, controlContext)
        (self.new, self.free, self.setDescriptor, self.control) = (new, free, setDescriptor, control)
        (self.parameters, self.setAddress, self.setHost) = (parameters, setAddress, setHost)
        (self.connect, self.read, self.write, self.shutdown, self.errorKind) = (connect, read, write, shutdown, errorKind)
        (self.verifyResult, self.verifyText) = (verifyResult, verifyText)
        (self.clearErrors, self.nextError, self.errorText) = (clearErrors, nextError, errorText)
    }

    // Numbers of ssl.h, x509_vfy.h and tls1.h.
    static let minimumVersion: Int32 = 123
    static let version1_2 = 0x0303
    static let mode: Int32 = 33
    /// SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    static let partialWrites = 3
    static let serverName: Int32 = 55
    static let verifyPeer: Int32 = 1
    static let pemFile: Int32 = 1
    static let wantsRead: Int32 = 2
    static let wantsWrite: Int32 = 3
    static let closed: Int32 = 6
}
