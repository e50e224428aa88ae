// Programs for Apple's framework say `import Virtualization` and use Foundation and Dispatch without importing them.
@_exported import Dispatch
@_exported import Foundation
