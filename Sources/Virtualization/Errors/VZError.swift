import Foundation

/// The domain of `VZError`.
public let VZErrorDomain: String = "VZErrorDomain"

/// An error of the framework. Its localized description joins a sentence for the kind of failure and one for the reason.
public struct VZError: CustomNSError, LocalizedError, Hashable, Sendable {
    /// What kind of failure; the raw values are Apple's.
    public enum Code: Int, Hashable, Sendable {
        case internalError = 1
        case invalidVirtualMachineConfiguration = 2
        case invalidVirtualMachineState = 3
        case invalidVirtualMachineStateTransition = 4
        case invalidDiskImage = 5
        case virtualMachineLimitExceeded = 6
        case networkError = 7
        case outOfDiskSpace = 8
        case operationCancelled = 9
        case notSupported = 10
        case save = 11
        case restore = 12
        case restoreImageCatalogLoadFailed = 10001
        case invalidRestoreImageCatalog = 10002
        case noSupportedRestoreImagesInCatalog = 10003
        case restoreImageLoadFailed = 10004
        case invalidRestoreImage = 10005
        case installationRequiresUpdate = 10006
        case installationFailed = 10007
        case networkBlockDeviceNegotiationFailed = 20001
        case networkBlockDeviceDisconnected = 20002
        case usbControllerNotFound = 30001
        case deviceAlreadyAttached = 30002
        case deviceInitializationFailure = 30003
        case deviceNotFound = 30004
        case guestProvisioningInvalidFullName = 40001
        case guestProvisioningInvalidUsername = 40002
        case guestProvisioningInvalidPassword = 40003
        case efiSecureBootEnrollmentFailed = 50001
        case efiVariableInaccessible = 50002
    }

    public let code: Code
    // Only property-list values are put in; they do not change afterwards.
    nonisolated(unsafe) public let userInfo: [String: Any]

    public init(_ code: Code, userInfo: [String: Any] = [:]) {
        self.code = code
        self.userInfo = userInfo
    }

    public static var errorDomain: String { VZErrorDomain }
    public var errorCode: Int { code.rawValue }
    public var errorUserInfo: [String: Any] { userInfo }
    public var localizedDescription: String { errorDescription ?? code.failure }
    public var errorDescription: String? {
        userInfo[NSLocalizedDescriptionKey] as? String ?? [code.failure, failureReason].compactMap { $0 }.joined(separator: " ")
    }
    public var failureReason: String? { userInfo[NSLocalizedFailureReasonErrorKey] as? String }

    public static func == (a: VZError, b: VZError) -> Bool { a.code == b.code && a.failureReason == b.failureReason }
    public func hash(into hasher: inout Hasher) { hasher.combine(code) }
}

extension VZError {
    public static var internalError: Code { .internalError }
    public static var invalidVirtualMachineConfiguration: Code { .invalidVirtualMachineConfiguration }
    public static var invalidVirtualMachineState: Code { .invalidVirtualMachineState }
    public static var invalidVirtualMachineStateTransition: Code { .invalidVirtualMachineStateTransition }
    public static var invalidDiskImage: Code { .invalidDiskImage }
    public static var virtualMachineLimitExceeded: Code { .virtualMachineLimitExceeded }
    public static var networkError: Code { .networkError }
    public static var outOfDiskSpace: Code { .outOfDiskSpace }
    public static var operationCancelled: Code { .operationCancelled }
    public static var notSupported: Code { .notSupported }
    public static var save: Code { .save }
    public static var restore: Code { .restore }
    public static var restoreImageCatalogLoadFailed: Code { .restoreImageCatalogLoadFailed }
    public static var invalidRestoreImageCatalog: Code { .invalidRestoreImageCatalog }
    public static var noSupportedRestoreImagesInCatalog: Code { .noSupportedRestoreImagesInCatalog }
    public static var restoreImageLoadFailed: Code { .restoreImageLoadFailed }
    public static var invalidRestoreImage: Code { .invalidRestoreImage }
    public static var installationRequiresUpdate: Code { .installationRequiresUpdate }
    public static var installationFailed: Code { .installationFailed }
    public static var networkBlockDeviceNegotiationFailed: Code { .networkBlockDeviceNegotiationFailed }
    public static var networkBlockDeviceDisconnected: Code { .networkBlockDeviceDisconnected }
    public static var usbControllerNotFound: Code { .usbControllerNotFound }
    public static var deviceAlreadyAttached: Code { .deviceAlreadyAttached }
    public static var deviceInitializationFailure: Code { .deviceInitializationFailure }
    public static var deviceNotFound: Code { .deviceNotFound }
    public static var guestProvisioningInvalidFullName: Code { .guestProvisioningInvalidFullName }
    public static var guestProvisioningInvalidUsername: Code { .guestProvisioningInvalidUsername }
    public static var guestProvisioningInvalidPassword: Code { .guestProvisioningInvalidPassword }
    public static var efiSecureBootEnrollmentFailed: Code { .efiSecureBootEnrollmentFailed }
    public static var efiVariableInaccessible: Code { .efiVariableInaccessible }
}

extension VZError.Code {
    /// So that `catch VZError.internalError` works, as it does for errors imported from Objective-C.
    public static func ~= (code: VZError.Code, error: any Error) -> Bool { (error as? VZError)?.code == code }

    /// The sentence for the kind of failure.
    var failure: String {
        switch self {
        case .internalError: return "Internal Virtualization error."
        case .invalidVirtualMachineConfiguration: return "Invalid virtual machine configuration."
        case .invalidVirtualMachineState: return "Invalid virtual machine state."
        case .invalidVirtualMachineStateTransition: return "Invalid virtual machine state transition."
        case .invalidDiskImage: return "Invalid disk image."
        case .virtualMachineLimitExceeded: return "The maximum supported number of active virtual machines has been reached."
        case .networkError: return "Network error."
        case .outOfDiskSpace: return "Out of disk space."
        case .operationCancelled: return "The operation was cancelled."
        case .notSupported: return "The operation is not supported."
        case .save: return "Failed to save the virtual machine state."
        case .restore: return "Failed to restore the virtual machine state."
        case .networkBlockDeviceNegotiationFailed: return "Failed to connect to the network block device."
        case .networkBlockDeviceDisconnected: return "The network block device was disconnected."
        default: return "Virtualization error \(rawValue)."
        }
    }
}

extension VZError {
    /// An error with a reason sentence, and the description that joins both.
    init(_ code: Code, reason: String, underlying: (any Error)? = nil) {
        var info: [String: Any] = [
            NSLocalizedFailureReasonErrorKey: reason, NSLocalizedDescriptionKey: code.failure + " " + reason, "NSLocalizedFailure": code.failure,
        ]
        if let underlying { info[NSUnderlyingErrorKey] = underlying as NSError }
        self.init(code, userInfo: info)
    }
    static func configuration(_ reason: String) -> VZError { VZError(.invalidVirtualMachineConfiguration, reason: reason) }
}
