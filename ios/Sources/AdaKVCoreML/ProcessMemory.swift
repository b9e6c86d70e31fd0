import AdaKVCore
import Darwin

extension MemoryUse {
  /// Of this process, now. Core ML's own process, where the Neural Engine's buffers live, is not in it.
  static func now() -> MemoryUse {
    guard let info = taskInfo() else { return MemoryUse() }
    return MemoryUse(
      rss: Int(info.resident_size), anonymous: Int(info.internal), file: Int(info.external),
      footprint: Int(info.phys_footprint))
  }

  /// The largest resident size so far, bytes.
  static func peak() -> Int {
    taskInfo().map { Int($0.resident_size_peak) } ?? 0
  }

  private static func taskInfo() -> task_vm_info_data_t? {
    var info = task_vm_info_data_t()
    var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
    let status = withUnsafeMutablePointer(to: &info) { pointer in
      pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
        task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
      }
    }
    return status == KERN_SUCCESS ? info : nil
  }
}
